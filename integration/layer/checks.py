"""What the BitBake layer promises, asked of bitbake's own parser and fetcher. `integration/layer/test` runs it.

A build of Venus OS takes hours. Here the layer is read by the same code, between layers that stand in for the real ones (`layers/`):
they have their names, and of their classes what the recipe builds upon. Done for real are the layers' configuration, the recipe and
the bbappend, the unpacking of the source, Cargo's view of it, and do_install.
"""

import contextlib
import glob
import hashlib
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import tomllib
import types
from argparse import ArgumentParser
from functools import cache
from pathlib import Path

# The wheel has bitbake's library without its servers for hashes and package revisions. Nothing here asks them.
for absent in ("hashserv", "hashserv.client", "prserv", "prserv.serv"):
    sys.modules[absent] = types.ModuleType(absent)
sys.modules["hashserv"].client = sys.modules["hashserv.client"]
sys.modules["prserv"].serv = sys.modules["prserv.serv"]

import bb  # noqa: E402
import bb.cache  # noqa: E402
import bb.codeparser  # noqa: E402
import bb.command  # noqa: E402
import bb.cookerdata  # noqa: E402
import bb.fetch2  # noqa: E402
import bb.server.process  # noqa: E402
import bb.cooker  # noqa: E402

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
LAYER = TOP / "meta-venus-mqtt"
SCRATCH = tempfile.TemporaryDirectory(prefix="venus-mqtt-layer-")
CARGO_TOML = tomllib.loads((TOP / "Cargo.toml").read_text())
# what the devices are
TARGETS = ("armv7-unknown-linux-gnueabihf", "aarch64-unknown-linux-gnu")

CHECKS = []


def check(promise):
    def register(function):
        CHECKS.append((promise, function))
        return function

    return register


def same(found, wanted, what):
    assert found == wanted, f"{what}: {found!r}, not {wanted!r}"


class Messages(logging.Handler):
    """What bitbake would show: warnings and errors."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


class Build:
    """A build folder, and what `bitbake -p` reads of its layers and recipes. `refused`: it does not go on."""

    def __init__(self, without=(), local=""):
        layers = [HERE / "layers" / name for name in ("core", "rust", "software", "third-party", "venus") if name not in without]
        self.folder = Path(tempfile.mkdtemp(dir=SCRATCH.name))
        (self.folder / "conf").mkdir()
        (self.folder / "conf/bblayers.conf").write_text(
            'BBPATH = "${TOPDIR}"\nBBFILES = ""\nBBLAYERS = "%s"\n' % " ".join(map(str, [*layers, LAYER]))
        )
        (self.folder / "conf/local.conf").write_text(local)
        self.recipes = {}
        self.refused = False
        messages = Messages()
        logging.getLogger("BitBake").addHandler(messages)
        # bitbake finds its build folder from where it is started, and tells its log on the way
        os.chdir(self.folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._read()
        except bb.BBHandledException:
            self.refused = True
        finally:
            os.chdir(TOP)
            logging.getLogger("BitBake").removeHandler(messages)
        self.said = "; ".join(messages.lines)

    def _read(self):
        cooker = bb.cooker.BBCooker()
        cooker.initConfigurationData()
        cooker.parseConfiguration()
        files = cooker.collections[""]
        recipes, _, _ = files.collect_bbfiles(cooker.data, cooker.data)
        unused = {append for _, append in files.bbappends}
        for recipe in recipes:
            appends = files.get_file_appends(recipe)
            d = cooker.databuilder.parseRecipe(recipe, appends, files.calc_bbfile_priority(recipe)[2])
            self.recipes[d.getVar("PN")] = d
            unused.difference_update(appends)
        if unused:
            bb.fatal("no recipe for " + " ".join(sorted(unused)))

    def recipe(self, name="venus-mqtt"):
        assert not self.refused and not self.said, self.said
        assert name in self.recipes, f"no recipe {name}, but {' '.join(self.recipes)}"
        return self.recipes[name]


@cache
def venus():
    """A build of Venus OS with the layer in it, and nothing else said."""
    return Build()


def recipe():
    return venus().recipe()


@cache
def source():
    """S, after the source has been unpacked: what a build sees of this repository."""
    d = recipe()
    files = [uri for uri in d.getVar("SRC_URI").split() if uri.startswith("file://")]
    with contextlib.redirect_stdout(io.StringIO()):
        fetch = bb.fetch2.Fetch(files, d)
        fetch.download()
        fetch.unpack(d.getVar("WORKDIR"))
    return Path(d.getVar("S"))


def cargo(*arguments):
    done = subprocess.run(["cargo", *arguments], cwd=source(), capture_output=True, text=True)
    assert done.returncode == 0, f"cargo {arguments[0]}: {done.stderr.strip()}"
    return done.stdout


@cache
def installed():
    """D, after do_install has run as the shell script that bitbake makes of it, on a program that has been built."""
    d = recipe()
    program = Path(d.expand("${B}/target/${CARGO_TARGET_SUBDIR}/venus-mqtt"))
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM)
    source()
    script = io.StringIO()
    bb.data.emit_func("do_install", script, d)
    done = subprocess.run(["sh", "-e"], input=script.getvalue() + "\ndo_install\n", capture_output=True, text=True)
    assert done.returncode == 0, f"do_install: {done.stderr.strip()}"
    return Path(d.getVar("D"))


# stands for the program in both packages
PROGRAM = "the program\n"


@cache
def package():
    """The files of the .ipk: rights, and content or where a link leads."""
    folder = Path(tempfile.mkdtemp(dir=SCRATCH.name))
    (folder / "program").write_text(PROGRAM)
    build = [TOP / "packaging/ipk/build", folder / "program", "armv7ahf-vfp", folder]
    made = subprocess.run(build, capture_output=True, text=True, env={**os.environ, "LICENCES": ""})
    assert made.returncode == 0, f"packaging/ipk/build: {made.stderr.strip()}"
    data = subprocess.run(["ar", "p", made.stdout.strip(), "data.tar.gz"], capture_output=True, check=True).stdout
    files = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            name = member.name.removeprefix(".")
            if member.issym():
                files[name] = ("link", member.linkname)
            elif member.isfile():
                files[name] = (oct(member.mode), tar.extractfile(member).read().decode())
    return files


def found_in(folder):
    """The same of a folder."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = "/" + str(path.relative_to(folder))
        if path.is_symlink():
            files[name] = ("link", os.readlink(path))
        elif path.is_file():
            files[name] = (oct(path.stat().st_mode & 0o7777), path.read_text())
    return files


def setup_says(name):
    """A variable of venus-mqtt-setup."""
    script = (TOP / "packaging/venus-mqtt-setup").read_text()
    values = re.findall(rf"^{name}=(\S+)$", script, re.MULTILINE)
    assert len(values) == 1, f"packaging/venus-mqtt-setup: {name} is set {len(values)} times"
    return values[0]


def run(command, **environment):
    done = subprocess.run(command, cwd=LAYER, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, (done.stdout + done.stderr).strip()


@check("the layer is read without a word in a build of Venus OS")
def _():
    recipe()


@check("it is refused where a layer is missing that it depends on")
def _():
    for name, collection in (
        ("rust", "scarthgap-rust-mixin"),
        ("software", "victronenergy-software"),
        ("third-party", "victronenergy-third-party"),
    ):
        build = Build(without=[name])
        assert build.refused and f"depends on layer '{collection}'" in build.said, f"without {collection}: {build.said or 'accepted'}"


@check("it is for scarthgap, and depends on the core")
def _():
    d = recipe()
    same(d.getVar("LAYERSERIES_COMPAT_venus-mqtt"), "scarthgap", "LAYERSERIES_COMPAT")
    assert "core" in d.getVar("LAYERDEPENDS_venus-mqtt").split()


@check("Rust that is too old is told before anything is built")
def _():
    wanted = CARGO_TOML["workspace"]["package"]["rust-version"]
    major, minor = wanted.split(".")
    older = f"{major}.{int(minor) - 1}"
    skipped = Build(local=f'RUSTVERSION = "{older}.1%"\n').recipe().getVar("__SKIPPED")
    assert skipped and f"Rust {older}.1 is too old" in skipped and f"needs {wanted}." in skipped, f"{older}.1: {skipped or 'accepted'}"
    for enough in (wanted, f"{wanted}.0%", f"{major}.{int(minor) + 20}%"):
        same(Build(local=f'RUSTVERSION = "{enough}"\n').recipe().getVar("__SKIPPED"), None, enough)


@check("the recipe has the version of Cargo.toml")
def _():
    same(recipe().getVar("PV"), CARGO_TOML["workspace"]["package"]["version"], "PV")


@check("the crates are those of Cargo.lock, each with its checksum")
def _():
    d = recipe()
    # bitbake -c update_crates writes to the file that is read
    assert Path(d.expand("${THISDIR}/${BPN}-crates.inc")).is_file()
    lock = tomllib.loads((TOP / "Cargo.lock").read_text())
    wanted = {(crate["name"], crate["version"]): crate["checksum"] for crate in lock["package"] if "source" in crate}
    uris = [uri for uri in d.getVar("SRC_URI").split() if uri.startswith("crate://")]
    found = {}
    for name, ud in zip(uris, bb.fetch2.Fetch(uris, d).ud.values()):
        crate, version = name.removeprefix("crate://crates.io/").split("/")
        same(ud.url, f"https://static.crates.io/crates/{crate}/{version}/download", "address")
        found[crate, version] = ud.sha256_expected
    differ = sorted(f"{name} {version}" for name, version in dict(found.items() ^ wanted.items()))
    assert not differ, f"{', '.join(differ)}: run meta-venus-mqtt/update-crates"
    same(len(uris), len(wanted), "number of crates")


@check("update-crates would change nothing")
def _():
    run([LAYER / "update-crates", "--check"])


@check("the licence is that of the repository")
def _():
    d = recipe()
    for uri in d.getVar("LIC_FILES_CHKSUM").split():
        _, _, path, _, _, parameters = bb.fetch2.decodeurl(uri)
        same(parameters["md5"], hashlib.md5((source() / path).read_bytes()).hexdigest(), f"md5 of {path}")
    same((source() / "LICENSE").read_bytes(), (TOP / "LICENSE").read_bytes(), "LICENSE")


@check("what is linked in is under the licences of the recipe, and each of them is needed")
def _():
    licences = recipe().getVar("LICENSE").split(" & ")
    linked = set()
    for target in TARGETS:
        tree = ["tree", "--locked", "--target", target, "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}|{l}"]
        linked.update(line.removesuffix(" (*)") for line in cargo(*tree).splitlines())
    # tables for macros, of which nothing gets into the program
    linked = {line for line in linked if not line.startswith("unicode-ident ")}

    def not_covered(allowed):
        def holds(match):
            word = match.group()
            return word.lower() if word in ("AND", "OR") else str(word in allowed)

        def covers(expression):
            return eval(re.sub(r"[\w.-]+( WITH [\w.-]+)?", holds, expression.replace("/", " OR ")))

        return sorted(line for line in linked if not covers(line.split("|")[1]))

    assert len(linked) > 50, linked
    same(not_covered(licences), [], "not covered")
    for licence in licences:
        assert not_covered(set(licences) - {licence}), f"nothing is under {licence}"


@check("the source is what Cargo needs, and lies where it is looked for")
def _():
    d = recipe()
    assert Path(d.getVar("CARGO_MANIFEST_PATH")).is_file(), d.getVar("CARGO_MANIFEST_PATH")
    packages = json.loads(cargo("metadata", "--locked", "--no-deps", "--format-version", "1"))["packages"]
    targets = [target for package in packages if package["name"] == "venus-mqtt" for target in package["targets"]]
    seen = {(kind, target["name"]) for target in targets for kind in target["kind"]}
    # what Cargo.toml names must be there, or `cargo build` ends before it begins
    named = {(kind, target["name"]) for kind in ("bin", "example", "test", "bench") for target in CARGO_TOML.get(kind, [])}
    assert named | {("bin", "venus-mqtt")} <= seen, f"missing: {(named | {('bin', 'venus-mqtt')}) - seen}"
    for folder in ("src", "packaging"):
        for path in (source() / folder).rglob("*"):
            if path.is_file():
                same(path.read_bytes(), (TOP / path.relative_to(source())).read_bytes(), str(path))


@check("the program is built alone, without the net")
def _():
    flags = recipe().getVar("CARGO_BUILD_FLAGS").split()
    assert "--frozen" in flags and "--release" in flags, flags
    same(flags[-2:], ["--bin", "venus-mqtt"], "CARGO_BUILD_FLAGS")


@check("the program is that of the packages, with the symbols left to OE")
def _():
    d = recipe()
    found = {name: d.getVar(name) for name in d.keys() if name.startswith("CARGO_PROFILE_") and d.getVarFlag(name, "export")}
    wanted = {"STRIP": "none", "DEBUG": "line-tables-only"}
    for key, value in CARGO_TOML["profile"]["dist"].items():
        if key not in ("inherits", "strip", "debug"):
            wanted[key.upper().replace("-", "_")] = str(value).lower()
    same(CARGO_TOML["profile"]["dist"]["inherits"], "release", "what dist inherits")
    same(found, {f"CARGO_PROFILE_RELEASE_{key}": value for key, value in wanted.items()}, "profile")


@check("user and group are those of venus-mqtt-setup, with the same number")
def _():
    d = recipe()
    same(d.getVar("USERADD_PACKAGES"), "venus-mqtt", "USERADD_PACKAGES")
    group = ArgumentParser()
    group.add_argument("--system", action="store_true")
    group.add_argument("--gid")
    group.add_argument("name")
    user = ArgumentParser(parents=[group], add_help=False)
    for option in ("--uid", "--home-dir", "--shell"):
        user.add_argument(option)
    user.add_argument("--no-create-home", action="store_true")
    name, number = setup_says("user"), setup_says("uid")
    same(
        vars(group.parse_args(shlex.split(d.getVar("GROUPADD_PARAM:venus-mqtt")))),
        {"system": True, "gid": number, "name": name},
        "GROUPADD_PARAM",
    )
    same(
        vars(user.parse_args(shlex.split(d.getVar("USERADD_PARAM:venus-mqtt")))),
        {
            "system": True,
            "uid": number,
            "gid": name,
            "home_dir": setup_says("state"),
            "shell": "/bin/false",
            "no_create_home": True,
            "name": name,
        },
        "USERADD_PARAM",
    )


@check("the service's scripts are those of the .ipk, byte for byte")
def _():
    d = recipe()
    for script in ("run", "log/run"):
        made = installed() / d.getVar("DAEMONTOOLS_SERVICE_DIR").lstrip("/") / script
        same(made.read_bytes(), (TOP / "packaging/service" / script).read_bytes(), script)


@check("what lands in an image is what the .ipk brings")
def _():
    found, wanted = found_in(installed()), package()
    same(sorted(found), sorted(wanted), "files")
    for name, (kind, content) in found.items():
        same(kind, wanted[name][0], f"rights of {name}")
        assert content == wanted[name][1], f"{name} is another"


@check("all of it is packaged")
def _():
    d = recipe()
    packaged = set()
    for pattern in d.getVar("FILES:venus-mqtt").split():
        for match in glob.glob(str(installed()) + pattern):
            packaged.update("/" + str(path.relative_to(installed())) for path in [Path(match), *Path(match).rglob("*")])
    same(sorted(found_in(installed()).keys() - packaged), [], "left over")
    same(d.getVar("RRECOMMENDS:venus-mqtt"), "ca-certificates", "RRECOMMENDS")


def images(local):
    """The recipes with venus-mqtt in IMAGE_INSTALL."""
    build = Build(local=local)
    build.recipe()
    return sorted(name for name, d in build.recipes.items() if "venus-mqtt" in (d.getVar("IMAGE_INSTALL") or "").split())


@check("no image has it unless asked")
def _():
    for local in ("", 'VENUS_MQTT_IN_IMAGE = "0"\n', 'VENUS_MQTT_IN_IMAGE = ""\n'):
        same(images(local), [], local)


@check("every image has it when asked, and nothing else has")
def _():
    same(images('VENUS_MQTT_IN_IMAGE = "1"\n'), ["venus-image", "venus-image-large"], "asked")


@check("another distribution has it in no image, nor needs Victron's")
def _():
    asked = 'DISTRO = "other"\nVENUS_MQTT_IN_IMAGE = "1"\n'
    same(images(asked), [], "asked")
    Build(without=["venus"], local=asked).recipe()


@check("oelint-adv finds nothing")
def _():
    files = [path for pattern in ("conf/*.conf", "recipes-*/*/*", "dynamic-layers/*/recipes-*/*") for path in sorted(LAYER.glob(pattern))]
    same({path.suffix for path in files}, {".conf", ".bb", ".inc", ".bbappend"}, "files")
    run([Path(sys.executable).parent / "oelint-adv", "--quiet", *files], OELINT_CONFIG=str(HERE / "oelint.cfg"))


def main():
    failed = 0
    for promise, function in CHECKS:
        try:
            function()
        except Exception as error:
            failed += 1
            said = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            print(f"FAILED  {promise}\n{textwrap.indent(said, ' ' * 8)}")
        else:
            print(f"ok      {promise}")
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
