B = "${WORKDIR}/build"
RUST_HOST_SYS = "armv7-ve-linux-gnueabihf"
CARGO_MANIFEST_PATH ??= "${S}/Cargo.toml"
BUILD_MODE = "${@['--release', ''][d.getVar('DEBUG_BUILD') == '1']}"
BUILD_DIR = "${@['release', 'debug'][d.getVar('DEBUG_BUILD') == '1']}"
CARGO_BUILD_FLAGS = "-v --frozen --target ${RUST_HOST_SYS} ${BUILD_MODE} --manifest-path=${CARGO_MANIFEST_PATH}"
CARGO_TARGET_SUBDIR = "${RUST_HOST_SYS}/${BUILD_DIR}"

cargo_do_compile() {
    cargo build ${CARGO_BUILD_FLAGS}
}

cargo_do_install() {
    echo "whatever is in ${B}/target/${CARGO_TARGET_SUBDIR} goes to ${bindir}; the recipe has a do_install of its own" >&2
    exit 1
}

EXPORT_FUNCTIONS do_compile do_install
