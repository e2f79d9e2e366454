#!/usr/bin/python3
"""Reads and writes a registered tank as velib's own programs do: dbus-python, no introspection, mostly no interface.

    velib.py BUS-ADDRESS SERVICE
"""
import sys
import time

import dbus
import dbus.bus

ITEM = "com.victronenergy.BusItem"


def check(what, got, wanted):
    if got != wanted or type(got) is not type(wanted):
        sys.exit(f"{what}: {got!r}, not {wanted!r}")


def wrap(value):
    """How velib makes a value for the bus: variants of its own types."""
    if value is None:
        return dbus.Array([], signature=dbus.Signature("i"), variant_level=1)
    if isinstance(value, float):
        return dbus.Double(value, variant_level=1)
    if isinstance(value, int):
        return dbus.Int32(value, variant_level=1)
    return dbus.String(value, variant_level=1)


def main(address, service):
    bus = dbus.bus.BusConnection(address)

    def item(path, name=service):
        return bus.get_object(name, path, introspect=False)

    # the scanner: one call for everything, without an interface
    items = bus.call_blocking(service, "/", None, "GetItems", "", [])
    check("the scanned level", items["/Level"]["Value"], dbus.Double(62.5, variant_level=1))
    check("the scanned instance", items["/DeviceInstance"]["Value"], dbus.Int32(1, variant_level=1))
    check("no value", items["/Remaining"]["Value"], dbus.Array([], signature="i", variant_level=1))
    check("its text", items["/Remaining"]["Text"], dbus.String("---", variant_level=1))
    # and the scanner of services without GetItems
    values = bus.call_blocking(service, "/", None, "GetValue", "", [])
    texts = bus.call_blocking(service, "/", None, "GetText", "", [])
    check("paths", sorted("/" + path for path in values), sorted(str(path) for path in items))
    check("paths with a text", sorted(values), sorted(texts))
    check("the instance", int(bus.call_blocking(service, "/DeviceInstance", None, "GetValue", "", [])), 1)

    # an item, as velib imports it
    level = item("/Level")
    check("the level", level.GetValue(), dbus.Double(62.5, variant_level=1))
    check("the level, by interface", level.GetValue(dbus_interface=ITEM), dbus.Double(62.5, variant_level=1))
    check("the same, by unique name", item("/Level", bus.get_name_owner(service)).GetValue(), dbus.Double(62.5, variant_level=1))
    assert "62.5" in item("/Level").GetText(), item("/Level").GetText()
    item("/Level").GetDescription("en", 100)
    check("a limit", item("/FluidType").GetMin(), dbus.Int32(0, variant_level=1))
    check("a default", item("/FluidType").GetDefault(), dbus.Int32(1, variant_level=1))
    check("an inner path", sorted(item("/Mgmt").GetValue()), ["Connection", "ProcessName", "ProcessVersion"])
    check("product", item("/ProductId").GetText().lower(), dbus.String("0xa161").lower())

    # written
    for path, value, wanted in [
        ("/Level", 50, dbus.Double(50.0, variant_level=1)),
        ("/Level", 50.5, dbus.Double(50.5, variant_level=1)),
        ("/Level", "51.5", dbus.Double(51.5, variant_level=1)),
        ("/Level", None, dbus.Array([], signature="i", variant_level=1)),
        ("/FluidType", 5, dbus.Int32(5, variant_level=1)),
        ("/CustomName", "From Python", dbus.String("From Python", variant_level=1)),
    ]:
        check(f"writing {path}", int(item(path).SetValue(wrap(value))), 0)
        check(f"{path} after {value!r}", item(path).GetValue(), wanted)
    for path, value in [("/FluidType", 99), ("/FluidType", "water"), ("/Level", "full"), ("/DeviceInstance", 5)]:
        if int(item(path).SetValue(wrap(value))) == 0:
            sys.exit(f"{path} took {value!r}")

    # what is not there is an error, and at once
    started = time.monotonic()
    try:
        item("/Nothing").GetValue()
        sys.exit("/Nothing answers")
    except dbus.exceptions.DBusException as error:
        assert "Unknown" in error.get_dbus_name(), error
    assert time.monotonic() - started < 1
    dbus.Interface(item("/"), "org.freedesktop.DBus.Peer").Ping()
    assert "<node" in dbus.Interface(item("/"), "org.freedesktop.DBus.Introspectable").Introspect()
    # with introspection, as a shell or a curious program does
    check("with introspection", bus.get_object(service, "/Level").GetValue(dbus_interface=ITEM), wrap(None))
    print("all is well")


main(*sys.argv[1:])
