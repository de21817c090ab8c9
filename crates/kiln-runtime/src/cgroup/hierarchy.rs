//! Where this process is in the machine's cgroup hierarchies, and where those can be reached.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// A hierarchy that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where.
    pub(super) mounted: PathBuf,
    /// The directory of this process's own cgroup.
    pub(super) own: PathBuf,
    pub(super) version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// With the controller of devices.
    OneWithDevices,
    /// With limits that programs look for, such as how much memory there is. Others are shown to nobody: each costs a mount.
    One,
    Two,
}

/// Controllers of limits that programs adapt themselves to.
const LIMITS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// The hierarchies in which this process can be found, in the order in which they were mounted.
pub(super) fn of_this_process() -> Vec<Hierarchy> {
    // Bytes that are no UTF-8 are in names that mountinfo does not escape; a path with one is not found, no more.
    let read = |path: &str| fs_err::read(path).unwrap_or_default();
    let (mounts, own) = (read("/proc/self/mountinfo"), read("/proc/self/cgroup"));
    find(&String::from_utf8_lossy(&mounts), &String::from_utf8_lossy(&own))
}

fn find(mounts: &str, own: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        // The last one at a place hides the others, whatever it is.
        if let Some(place) = line.split(' ').nth(4).map(unescaped) {
            found.retain(|hidden| hidden.mounted != place);
        }
        found.extend(of_mount(line, own));
    }
    found
}

impl Hierarchy {
    /// Whether this process's cgroup has no other below it, and is not the whole hierarchy: it tells of nobody else.
    pub(super) fn is_own_alone(&self) -> bool {
        let is_directory = |entry: io::Result<fs_err::DirEntry>| {
            entry.and_then(|e| e.file_type()).is_ok_and(|kind| kind.is_dir())
        };
        self.version != Version::OneWithDevices
            && self.own != self.mounted
            && fs_err::read_dir(&self.own).is_ok_and(|mut entries| !entries.any(is_directory))
    }

    /// Fails where something else is mounted over the hierarchy.
    pub(super) fn check(&self) -> io::Result<()> {
        const CGROUP: u64 = 0x27_e0eb;
        const CGROUP2: u64 = 0x6367_7270;
        let expect = if self.version == Version::Two { CGROUP2 } else { CGROUP };
        let found = rustix::fs::statfs(&self.own)?.f_type;
        if u64::try_from(found).is_ok_and(|found| found == expect) {
            return Ok(());
        }
        Err(io::Error::other(format!("{} is covered by another file system", self.mounted.display())))
    }
}

/// Reads a line of mountinfo: `31 23 0:28 ROOT PLACE rw,relatime shared:1 - cgroup cgroup rw,cpu`.
fn of_mount(line: &str, own: &str) -> Option<Hierarchy> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = filesystem.split(' ');
    let (kind, options) = (fields.next()?, fields.nth(1)?);
    let controllers: Vec<&str> = options.split(',').collect();
    let version = match kind {
        "cgroup2" => Version::Two,
        "cgroup" if controllers.contains(&"devices") => Version::OneWithDevices,
        "cgroup" if LIMITS.iter().any(|limit| controllers.contains(limit)) => Version::One,
        _ => return None,
    };
    let path = own.lines().find_map(|line| {
        let (named, path) = line.split_once(':')?.1.split_once(':')?;
        let same = match version {
            Version::Two => named.is_empty(),
            _ => !named.is_empty() && named.split(',').all(|name| controllers.contains(&name)),
        };
        same.then(|| PathBuf::from(path))
    })?;
    let mut fields = mount.split(' ').skip(3).map(unescaped);
    let (root, mounted) = (fields.next()?, fields.next()?);
    // What lies outside of this process's view begins with `/..`.
    let below = path.strip_prefix(&root).ok()?;
    if below.components().any(|component| component == Component::ParentDir) || has_parent(&root) {
        return None;
    }
    let own = if below.as_os_str().is_empty() { mounted.clone() } else { mounted.join(below) };
    Some(Hierarchy { mounted, own, version })
}

fn has_parent(path: &Path) -> bool {
    path.components().any(|component| component == Component::ParentDir)
}

/// Blanks, tabs, line ends and backslashes are octal in mountinfo.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mounts: &str, own: &str, expect: &[(&str, &str, Version)]) {
        let found = find(mounts, own);
        let found: Vec<_> = found
            .iter()
            .map(|found| {
                (found.mounted.to_str().expect("text"), found.own.to_str().expect("text"), found.version)
            })
            .collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn what_is_mounted_over_a_hierarchy_hides_it() {
        let twice = "32 31 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n33 31 0:29 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        check(twice, "0::/a/b\n", &[("/sys/fs/cgroup", "/sys/fs/cgroup/b", Version::Two)]);
        let foreign = format!("{twice}34 31 0:29 /../x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        check(&foreign, "0::/a/b\n", &[]);
        let host = tempfile::tempdir().expect("a temporary directory");
        let mounted = host.path().to_path_buf();
        let own = mounted.join("own");
        fs_err::create_dir(&own).expect("made");
        let covered = Hierarchy { mounted, own: own.clone(), version: Version::Two };
        assert!(covered.check().expect_err("refused").to_string().contains("covered by another file system"));
        let one = Hierarchy { version: Version::One, ..covered };
        assert!(one.is_own_alone());
        fs_err::create_dir(own.join("other")).expect("made");
        assert!(!one.is_own_alone());
    }

    #[test]
    fn hierarchies_and_places_are_found() {
        let hybrid = "23 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:4 master:1 - cgroup cgroup rw,cpu,cpuacct\n\
                      36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n\
                      37 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = "9:name=systemd:/user\n5:devices:/\n1:cpu,cpuacct:/a/b\n0::/user slice:x\n";
        check(
            hybrid,
            own,
            &[
                ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu/a/b", Version::One),
                ("/sys/fs/cgroup/devices", "/sys/fs/cgroup/devices", Version::OneWithDevices),
                ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/user slice:x", Version::Two),
            ],
        );
        let bound = "41 31 0:38 /user\\040slice /c\\134g rw - cgroup2 cgroup2 rw\n";
        check(bound, "0::/user slice/kiln\n", &[("/c\\g", "/c\\g/kiln", Version::Two)]);
        check(bound, "0::/other\n", &[]);
        check("41 31 0:38 /.. /c rw - cgroup2 cgroup2 rw\n", "0::/../x\n", &[]);
        check("41 31 0:38 / /c rw - cgroup2 cgroup2 rw\n", "0::/../x\n", &[]);
        check("41 31 0:38 / /c rw - cgroup2 cgroup2 rw\n", "5:devices:/\n", &[]);
        check("", own, &[]);
    }
}
