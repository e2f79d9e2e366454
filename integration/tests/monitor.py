#!/usr/bin/python3
"""Follows one item of all services of a type as velib's dbusmonitor does, and adds it up as dbus-systemcalc does: whatever /Connected says.

    monitor.py BUS-ADDRESS TYPE PATH

Prints a line for each change: `ready`; `there SERVICE VALUE` and `gone SERVICE`; `item SERVICE VALUE`; and after each of them `sum VALUE`. A value
that is not there is `none`.
"""
import ctypes
import sys

import dbus
import dbus.bus
import dbus.mainloop.glib

GLIB = ctypes.CDLL("libglib-2.0.so.0")
ITEM = "com.victronenergy.BusItem"


def plain(value):
    """What velib makes of a value: an empty array is None."""
    if isinstance(value, dbus.Array) and not value:
        return None
    return float(value)


def say(*words):
    print(*("none" if word is None else f"{word:g}" if isinstance(word, float) else word for word in words), flush=True)


class Monitor:
    def __init__(self, address, kind, path):
        self.prefix = f"com.victronenergy.{kind}."
        self.path = path
        self.owners = {}
        self.values = {}
        self.bus = dbus.bus.BusConnection(address)
        self.bus.add_signal_receiver(self.name_owner_changed, "NameOwnerChanged", "org.freedesktop.DBus")
        self.bus.add_signal_receiver(self.properties_changed, "PropertiesChanged", ITEM, path_keyword="path", sender_keyword="sender")
        self.bus.add_signal_receiver(self.items_changed, "ItemsChanged", ITEM, path="/", sender_keyword="sender")
        for name in self.bus.list_names():
            if name.startswith(self.prefix):
                self.scan(str(name), str(self.bus.get_name_owner(name)))

    def scan(self, name, owner):
        items = self.bus.call_blocking(name, "/", None, "GetItems", "", [])
        if "/DeviceInstance" not in items:
            return
        self.owners[owner] = name
        self.values[name] = plain(items[self.path]["Value"]) if self.path in items else None
        say("there", name, self.values[name])
        self.add_up()

    def name_owner_changed(self, name, old, new):
        if not name.startswith(self.prefix):
            return
        if old:
            self.owners.pop(str(old), None)
            if self.values.pop(str(name), self) is not self:
                say("gone", name)
                self.add_up()
        if new:
            self.scan(str(name), str(new))

    def properties_changed(self, changes, path, sender):
        if path == self.path and "Value" in changes:
            self.take(sender, changes["Value"])

    def items_changed(self, items, sender):
        if self.path in items and "Value" in items[self.path]:
            self.take(sender, items[self.path]["Value"])

    def take(self, sender, value):
        name = self.owners.get(str(sender))
        if name is not None:
            self.values[name] = plain(value)
            say("item", name, self.values[name])
            self.add_up()

    def add_up(self):
        values = [value for value in self.values.values() if value is not None]
        say("sum", float(sum(values)) if values else None)


def main(address, kind, path):
    dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
    monitor = Monitor(address, kind, path)
    say("ready")
    while monitor.bus.get_is_connected():
        GLIB.g_main_context_iteration(None, True)


main(*sys.argv[1:])
