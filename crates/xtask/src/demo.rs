//! `cargo xtask demo`: a Debian base out of packages, a Python service on it, one run, its history.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::apt::{PrivateApt, SUITE, debian_sources};
use crate::machine::{self, has, is_root, repository, run, say, target_directory};

/// What the base image is called.
pub(crate) const BASE: &str = "debian:bookworm";

/// Runs the demo.
pub(crate) fn run_demo() -> Result<()> {
    let start = Instant::now();
    say("building kiln (release)");
    run(machine::cargo().args(["build", "--release", "--quiet", "--package", "kiln"]))?;
    let place = target_directory().join("demo");
    std::fs::create_dir_all(&place)?;
    let kiln = Kiln { program: target_directory().join("release/kiln"), root: place.join("store") };
    make_base(&kiln, &place)?;

    say("building a Python service: two stages, apt-get and pip in RUN, a cache mount");
    let context = repository().join("demo");
    let build = |kiln: &Kiln| {
        let mut command = kiln.command("build");
        command.args(["--lend", "ca,pip,apt", "-t", "service"]).arg(&context);
        run(&mut command)
    };
    build(&kiln)?;
    say("building it again: everything is cached");
    build(&kiln)?;
    say("running it once");
    run(kiln.command("run").args(["--rm", "service"]))?;
    say("its history");
    run(kiln.command("history").arg("service"))?;
    run(&mut kiln.command("images"))?;
    say(&format!("done in {} seconds", start.elapsed().as_secs()));
    println!(
        "The store is {}; try: {} --root {} images",
        kiln.root.display(),
        kiln.program.display(),
        kiln.root.display()
    );
    Ok(())
}

/// A kiln with a store.
pub(crate) struct Kiln {
    pub(crate) program: PathBuf,
    pub(crate) root: PathBuf,
}

impl Kiln {
    pub(crate) fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).arg(subcommand);
        command
    }

    fn import(&self, archive: &Path, name: &str) -> Result<()> {
        run(self.command("import").args(["--change", "CMD [\"bash\"]"]).arg(archive).arg(name))
    }
}

/// Makes the base image out of packages, if it is not there from an earlier time. `place` takes what is needed meanwhile.
pub(crate) fn make_base(kiln: &Kiln, place: &Path) -> Result<()> {
    let mut inspect = kiln.command("image");
    let found = inspect.args(["inspect", BASE]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if found.success() {
        say("the base image is there from an earlier demo");
        Ok(())
    } else if is_root() {
        base_with_mmdebstrap(kiln, place)
    } else {
        base_without_root(kiln, place)
    }
}

/// As root: mmdebstrap makes a root file system from the machine's own package sources.
fn base_with_mmdebstrap(kiln: &Kiln, place: &Path) -> Result<()> {
    if !has("mmdebstrap") {
        machine::install(&["mmdebstrap"])?;
    }
    say("making a Debian root file system out of packages");
    let archive = place.join("debian.tar");
    debian_root(place, &archive, "ca-certificates")?;
    say("importing it");
    kiln.import(&archive, BASE)?;
    std::fs::remove_file(&archive).context("remove the archive")
}

/// Writes a root file system of the machine's own package sources to `archive`, with these packages besides the essential
/// ones and apt. `place` takes what is needed meanwhile.
pub(crate) fn debian_root(place: &Path, archive: &Path, packages: &str) -> Result<()> {
    let sources = place.join("sources.list");
    std::fs::write(&sources, debian_sources()?)?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=apt", &format!("--include={packages}"), SUITE]);
    run(command.arg(archive).arg(&sources))
}

/// Without root: packages are downloaded under private directories, unpacked by dpkg-deb, and configured in a
/// RUN of kiln's.
fn base_without_root(kiln: &Kiln, place: &Path) -> Result<()> {
    for program in ["apt-get", "dpkg-deb", "tar"] {
        if !has(program) {
            bail!("{program} is not on the PATH: the demo's base is made of Debian packages");
        }
    }
    say("downloading Debian packages, without root");
    let context = place.join("bootstrap");
    if context.exists() {
        std::fs::remove_dir_all(&context)?;
    }
    let packages = context.join("packages");
    std::fs::create_dir_all(&packages)?;
    let apt = PrivateApt::new(&place.join("apt"), &debian_sources()?)?;
    // The last merges /usr on systems that were installed without; without it apt takes a package that does.
    apt.download(&apt.plan(&["?essential", "apt", "ca-certificates", "usr-is-merged"])?, &packages)?;
    say("unpacking them with dpkg-deb");
    let root = context.join("root");
    unpack(&packages, &root)?;
    std::fs::write(root.join("etc/apt/sources.list"), debian_sources()?)?;
    say("configuring them in a RUN");
    std::fs::write(context.join("Dockerfile"), CONFIGURE)?;
    run(kiln.command("build").args(["-t", BASE]).arg(&context))?;
    std::fs::remove_dir_all(&context).context("remove the unpacked packages")
}

/// Unpacks every package of `packages` into `root`, where `/bin` and the like are links into `/usr`.
fn unpack(packages: &Path, root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        std::fs::create_dir_all(root.join("usr").join(name))?;
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))?;
    }
    let mut count = 0;
    for package in std::fs::read_dir(packages)? {
        let package = package?.path();
        if package.extension().is_none_or(|extension| extension != "deb") {
            continue;
        }
        // Not `dpkg-deb --extract`, which puts a directory in the place of such a link.
        let mut open = Command::new("dpkg-deb");
        let mut open = open.arg("--fsys-tarfile").arg(&package).stdout(Stdio::piped()).spawn()?;
        let archive = open.stdout.take().context("dpkg-deb has no output")?;
        let mut extract = Command::new("tar");
        extract.args(["--extract", "--preserve-permissions", "--no-same-owner", "--keep-directory-symlink"]);
        let extracted = extract.arg("--directory").arg(root).stdin(archive).status()?;
        if !open.wait()?.success() || !extracted.success() {
            bail!("cannot unpack {}", package.display());
        }
        count += 1;
    }
    println!("{count} packages");
    Ok(())
}

/// What debootstrap's second stage does, in one step: dpkg installs the packages over their own files. Only the result
/// is kept, as one layer.
const CONFIGURE: &str = "FROM scratch AS configured
COPY root /
RUN --mount=type=bind,source=packages,target=/packages set -e; \\
    export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true; \\
    cp /usr/share/base-passwd/passwd.master /etc/passwd; \\
    cp /usr/share/base-passwd/group.master /etc/group; \\
    chmod 755 /usr/lib*; chmod 644 /etc/apt/sources.list; \\
    ln -s mawk /usr/bin/awk; \\
    touch /var/lib/dpkg/status /var/lib/dpkg/available; \\
    dpkg --force-depends --force-unsafe-io --install /packages/*.deb > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }; \\
    dpkg --audit; rm /tmp/log

FROM scratch
COPY --from=configured / /
CMD [\"bash\"]
";
