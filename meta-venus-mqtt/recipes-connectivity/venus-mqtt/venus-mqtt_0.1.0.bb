SUMMARY = "The MQTT interface of Venus OS"
DESCRIPTION = "Every value of a GX device as an MQTT topic, on any broker, and back; \
               devices that register themselves by MQTT; measurements for HTTP backends."
SECTION = "net"
# Ours is MIT. The others are those of crates that are linked in: rumqttc and ring; subtle; ring and rustls-webpki; foldhash.
LICENSE = "MIT & Apache-2.0 & BSD-3-Clause & ISC & Zlib"
LIC_FILES_CHKSUM = "file://LICENSE;md5=4589617652757cdddcf4017917675ee2"

# The source is the repository that this layer is part of: neither can be of another version than the other. It lands in S as it is
# by default, ${WORKDIR}/${BP}. Of the demo and of integration, which are not built, Cargo wants to see that they are there.
FILESEXTRAPATHS:prepend := "${THISDIR}/../../..:"
SRC_URI = "\
    file://Cargo.lock;subdir=${BP} \
    file://Cargo.toml;subdir=${BP} \
    file://LICENSE;subdir=${BP} \
    file://examples/demo/main.rs;subdir=${BP} \
    file://integration/Cargo.toml;subdir=${BP} \
    file://integration/src/lib.rs;subdir=${BP} \
    file://packaging/venus-mqtt-setup;subdir=${BP} \
    file://packaging/venus-mqtt.toml;subdir=${BP} \
    file://src;subdir=${BP} \
"
require ${BPN}-crates.inc

inherit cargo cargo-update-recipe-crates ve_package daemontools useradd

# Cargo says so as well, but not before a toolchain has been built.
python () {
    rust = (d.getVar("RUSTVERSION") or "").rstrip("%")
    if rust and bb.utils.vercmp_string_op(rust, "1.89", "<"):
        raise bb.parse.SkipRecipe("Rust %s is too old: venus-mqtt needs 1.89. Is the scarthgap rust mixin older than that?" % rust)
}

CARGO_BUILD_FLAGS += "--bin venus-mqtt"
# The release profile, made what the profile `dist` of Cargo.toml is: the program of the packages.
export CARGO_PROFILE_RELEASE_OPT_LEVEL = "s"
# But it is for OE to take the symbols out of the program. They go to the -dbg package, with the lines that they stand for.
export CARGO_PROFILE_RELEASE_STRIP = "none"
export CARGO_PROFILE_RELEASE_DEBUG = "line-tables-only"

# What it remembers in /data must be its own after a firmware update, too: hence numbers that never change. venus-mqtt-setup makes the
# same account where there is none, and at each start the folder and the configuration, in /data, where no image can put them.
USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system --gid 811 venus-mqtt"
USERADD_PARAM:${PN} = "--system --uid 811 --gid venus-mqtt --home-dir /data/venus-mqtt --no-create-home --shell /bin/false venus-mqtt"

DAEMONTOOLS_RUN = "softlimit -d 100000000 -s 1000000 -a 200000000 setuidgid venus-mqtt ${bindir}/venus-mqtt"
DAEMONTOOLS_SCRIPT = "${bindir}/venus-mqtt-setup prepare && exec ${DAEMONTOOLS_RUN}"

# bindir is /opt/victronenergy/venus-mqtt.
do_install() {
    install -d ${D}${bindir}
    install -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/venus-mqtt ${D}${bindir}
    install -m 0755 ${S}/packaging/venus-mqtt-setup ${D}${bindir}
    install -m 0644 ${S}/packaging/venus-mqtt.toml ${D}${bindir}

    install -d ${D}${exec_prefix}/bin
    ln -s ${bindir}/venus-mqtt ${D}${exec_prefix}/bin/venus-mqtt
}

FILES:${PN} += "${exec_prefix}/bin/venus-mqtt"
# TLS goes by the system's trusted roots.
RRECOMMENDS:${PN} = "ca-certificates"
