CARGO_LOCK_SRC_DIR ??= "${S}"

do_update_crates() {
    echo "reads ${CARGO_LOCK_SRC_DIR}/Cargo.lock, writes ${THISDIR}/${BPN}-crates.inc" >&2
    exit 1
}

addtask update_crates after do_unpack
