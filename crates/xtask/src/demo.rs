//! `cargo xtask demo`: a Debian base out of packages, a Python service on it, one run, its history.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::machine::{self, has, is_root, output, repository, run, say, target_directory};

const SUITE: &str = "bookworm";
const BASE: &str = "debian:bookworm";

/// Runs the demo.
pub(crate) fn run_demo() -> Result<()> {
    say("building kiln (release)");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo).current_dir(repository()).args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "kiln",
    ]))?;
    let place = target_directory().join("demo");
    std::fs::create_dir_all(&place)?;
    let kiln = Kiln { program: target_directory().join("release/kiln"), root: place.join("store") };

    if kiln
        .command("image")
        .args(["inspect", BASE])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?
        .success()
    {
        say("the base image is there from an earlier demo");
    } else if is_root() {
        base_with_mmdebstrap(&kiln, &place)?;
    } else {
        base_without_root(&kiln, &place)?;
    }

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
    say("done");
    println!(
        "The store is {}; try: {} --root {} images",
        kiln.root.display(),
        kiln.program.display(),
        kiln.root.display()
    );
    Ok(())
}

struct Kiln {
    program: PathBuf,
    root: PathBuf,
}

impl Kiln {
    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).arg(subcommand);
        command
    }

    fn import(&self, archive: &Path, name: &str) -> Result<()> {
        run(self.command("import").args(["--change", "CMD [\"bash\"]"]).arg(archive).arg(name))
    }
}

/// As root: mmdebstrap makes a root file system from the machine's own package sources.
fn base_with_mmdebstrap(kiln: &Kiln, place: &Path) -> Result<()> {
    if !has("mmdebstrap") {
        machine::install(&["mmdebstrap"])?;
    }
    say("making a Debian root file system out of packages");
    let archive = place.join("debian.tar");
    debian_root(place, &archive)?;
    say("importing it");
    kiln.import(&archive, BASE)?;
    std::fs::remove_file(&archive).context("remove the archive")
}

/// Writes a root file system of the machine's own package sources to `archive`. `place` takes what is needed besides.
pub(crate) fn debian_root(place: &Path, archive: &Path) -> Result<()> {
    let sources = place.join("sources.list");
    std::fs::write(&sources, debian_sources()?)?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=apt", "--include=ca-certificates", SUITE]).arg(archive).arg(&sources);
    run(&mut command)
}

/// Without root: packages are downloaded under private directories, unpacked by dpkg-deb, and configured in a
/// RUN of kiln's.
fn base_without_root(kiln: &Kiln, place: &Path) -> Result<()> {
    for program in ["apt-get", "dpkg-deb"] {
        if !has(program) {
            bail!("{program} is not on the PATH: the demo's base is made of Debian packages");
        }
    }
    say("downloading Debian packages, without root");
    let apt = PrivateApt::new(place)?;
    let packages = apt.essential_packages()?;
    apt.download(&packages)?;
    say("unpacking them");
    let context = place.join("bootstrap");
    let _ = std::fs::remove_dir_all(&context);
    let root = context.join("root");
    std::fs::create_dir_all(root.join("var/cache/apt/archives"))?;
    for directory in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/lib32"] {
        std::fs::create_dir_all(root.join(directory))?;
    }
    for name in ["bin", "sbin", "lib", "lib64", "lib32"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))?;
    }
    for package in std::fs::read_dir(apt.archives())? {
        let package = package?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            let status = Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root).status()?;
            if !status.success() {
                bail!("dpkg-deb -x {} ended with {status}", package.display());
            }
            std::fs::copy(
                &package,
                root.join("var/cache/apt/archives").join(package.file_name().unwrap_or_default()),
            )?;
        }
    }
    std::fs::create_dir_all(root.join("etc/apt"))?;
    std::fs::write(root.join("etc/apt/sources.list"), debian_sources()?)?;
    say("importing them");
    let archive = place.join("unpacked.tar");
    run(Command::new("tar")
        .args(["--owner=0", "--group=0", "--numeric-owner", "-C"])
        .arg(&root)
        .arg("-cf")
        .arg(&archive)
        .arg("."))?;
    kiln.import(&archive, "debian-unpacked")?;
    std::fs::remove_file(&archive)?;
    say("configuring them in a RUN");
    std::fs::write(context.join("Dockerfile"), CONFIGURE)?;
    std::fs::write(context.join(".dockerignore"), "root\n")?;
    run(kiln.command("build").args(["-t", BASE]).arg(&context))
}

/// What debootstrap's second stage does, in one step.
const CONFIGURE: &str = "FROM debian-unpacked
ENV DEBIAN_FRONTEND=noninteractive
RUN set -e; \\
    mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers /tmp /proc /sys /root; chmod 1777 /tmp; \\
    [ -e /usr/bin/awk ] || ln -s mawk /usr/bin/awk; \\
    touch /var/lib/dpkg/status /var/lib/dpkg/available; \\
    printf 'root:x:0:0:root:/root:/bin/bash\\n' > /etc/passwd; printf 'root:x:0:\\nmail:x:8:\\nutmp:x:43:\\nshadow:x:42:\\n' > /etc/group; \\
    cd /var/cache/apt/archives; \\
    dpkg --force-depends --install base-passwd*.deb; \\
    dpkg --force-depends --install base-files*.deb; \\
    dpkg --force-depends --install libc6*.deb perl-base*.deb mawk*.deb debconf*.deb; \\
    dpkg --force-depends --install *.deb; dpkg --configure -a; \\
    rm -f /var/cache/apt/archives/*.deb
ENV DEBIAN_FRONTEND=
CMD [\"bash\"]
";

/// apt with every directory of its own, so that it needs no root.
struct PrivateApt {
    directory: PathBuf,
    configuration: PathBuf,
}

impl PrivateApt {
    fn new(place: &Path) -> Result<Self> {
        let directory = place.join("apt");
        for name in ["lists/partial", "archives/partial", "etc/preferences.d", "etc/apt.conf.d", "state"] {
            std::fs::create_dir_all(directory.join(name))?;
        }
        std::fs::write(directory.join("state/status"), "")?;
        std::fs::write(directory.join("etc/sources.list"), debian_sources()?)?;
        let shown = directory.display();
        let text = format!(
            "Dir::State \"{shown}/state\";\nDir::State::Lists \"{shown}/lists\";\nDir::State::status \"{shown}/state/status\";\n\
             Dir::Cache \"{shown}\";\nDir::Cache::archives \"{shown}/archives\";\nDir::Etc::sourcelist \"{shown}/etc/sources.list\";\n\
             Dir::Etc::sourceparts \"-\";\nDir::Etc::preferencesparts \"{shown}/etc/preferences.d\";\n\
             Debug::NoLocking \"1\";\nAPT::Install-Recommends \"0\";\nAPT::Sandbox::User \"\";\nDPkg::Post-Invoke \"\";\nAPT::Update::Post-Invoke \"\";\n"
        );
        let configuration = directory.join("apt.conf");
        std::fs::write(&configuration, text)?;
        let apt = Self { directory, configuration };
        run(apt.command("apt-get").args(["update", "-qq"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.configuration).current_dir(self.archives());
        command
    }

    fn archives(&self) -> PathBuf {
        self.directory.join("archives")
    }

    /// Names of the essential packages, of apt and of what they depend on.
    fn essential_packages(&self) -> Result<Vec<String>> {
        let text = output(self.command("apt-cache").args(["dumpavail"]))?;
        let mut wanted =
            vec!["apt".to_owned(), "ca-certificates".to_owned(), "debian-archive-keyring".to_owned()];
        for paragraph in text.split("\n\n") {
            let field = |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name));
            if field("Essential: ") == Some("yes") {
                wanted.extend(field("Package: ").map(str::to_owned));
            }
        }
        let mut simulate = self.command("apt-get");
        simulate.args(["install", "--simulate", "-qq"]).args(&wanted);
        let plan = output(&mut simulate)?;
        let packages: Vec<String> = plan
            .lines()
            .filter_map(|line| line.strip_prefix("Inst "))
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect();
        if packages.is_empty() {
            bail!("apt-get names no package to install");
        }
        Ok(packages)
    }

    fn download(&self, packages: &[String]) -> Result<()> {
        run(self.command("apt-get").args(["download", "-qq"]).args(packages))
    }
}

/// One-line sources of the machine's own Debian mirrors, so that no host is named here.
fn debian_sources() -> Result<String> {
    let format = "$(SITE) $(RELEASE) $(CREATED_BY) $(ORIGIN) $(REPO_URI) $(COMPONENT)";
    let listed =
        output(Command::new("apt-get").args(["indextargets", "--format", format, "Identifier: Packages"]))?;
    let mut lines: Vec<String> = Vec::new();
    for target in listed.lines() {
        let mut fields = target.split_whitespace();
        let (Some(_site), Some(release)) = (fields.next(), fields.next()) else { continue };
        let Some(uri) = fields.clone().find(|field| field.contains("://")) else { continue };
        if !release.starts_with(SUITE) || !uri.contains("debian") {
            continue;
        }
        let line = format!("deb {uri} {release} main");
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    if lines.is_empty() {
        bail!("apt knows no Debian {SUITE} mirror on this machine");
    }
    Ok(lines.join("\n") + "\n")
}
