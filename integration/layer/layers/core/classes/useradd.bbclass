# Accounts are made from these two, for each package that is named.
python () {
    packages = (d.getVar("USERADD_PACKAGES") or "").split()
    if not packages:
        bb.fatal("useradd: no USERADD_PACKAGES")
    for package in packages:
        if not d.getVar("USERADD_PARAM:" + package) and not d.getVar("GROUPADD_PARAM:" + package):
            bb.fatal("useradd: nothing to add for " + package)
}
