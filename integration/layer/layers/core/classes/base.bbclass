THISDIR = "${@os.path.dirname(d.getVar('FILE', False))}"

# file:// is looked for along FILESPATH: what a recipe prepends, then the folders beside it; in each of them for the overrides first.
FILESPATH = "${@source_path(d)}"

def source_path(d):
    folders = (d.getVar("FILESEXTRAPATHS") or "").split(":")
    folders += [d.expand("${FILE_DIRNAME}/" + name) for name in ("${BP}", "${BPN}", "files")]
    names = d.getVar("OVERRIDES").split(":")[::-1] + [""]
    return ":".join(os.path.join(folder, name) for folder in folders if folder for name in names)

addtask unpack
addtask configure after do_unpack
addtask compile after do_configure
addtask install after do_compile
addtask build after do_install
