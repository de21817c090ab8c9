//! A sandbox where neither namespaces nor mounts are to be had: a changed root directory, and a list of what that does
//! not isolate.

use std::path::Path;

use crate::capability::bits;
use crate::failure::{Failure, at};
use crate::filesystems::NODES;
use crate::sandbox::{Network, RootSource, Sandbox, Security};
use crate::target::{Missing, Tree};
use kiln_sys::{mount, process};

/// Changes the root, and says what is not isolated.
pub(crate) fn set_up(sandbox: &Sandbox, notes: &mut Vec<String>) -> Result<Tree, Failure> {
    let refused = |what: &str| at(what)(rustix::io::Errno::NOTSUP.into());
    let RootSource::Directory { path } = &sandbox.root else {
        return Err(refused(
            "mount an overlay without the privilege to mount: the root must be a copied directory",
        ));
    };
    if sandbox.network == Network::None {
        return Err(refused("give the command no network without the privilege to make namespaces"));
    }
    let mut note =
        "not isolated: processes, network, host name, IPC, mounts and devices are those of the host; only \
                    the root directory is the command's own, and that is no barrier"
            .to_owned();
    let administrator = process::capabilities().is_ok_and(|own| own & bits::SYS_ADMIN != 0);
    if !administrator && sandbox.security == Security::Sandboxed {
        // Without CAP_SYS_ADMIN a filter is for those alone who can gain no privileges.
        note.push_str("; set-user-ID programs give no privileges");
    }
    let root = mount::open_place(path).map_err(at(&format!("open the root {}", path.display())))?;
    rustix::process::fchdir(&root).map_err(|errno| at("enter the root")(errno.into()))?;
    rustix::process::chroot(c".").map_err(|errno| at("change the root directory")(errno.into()))?;
    let mut tree = Tree::new(root).map_err(at("look at the root"))?;
    provide_devices(&mut tree, &mut note);
    notes.push(note);
    Ok(tree)
}

/// Makes the usual device nodes where the root has none: hardly a script does without `/dev/null`.
fn provide_devices(tree: &mut Tree, note: &mut String) {
    for (name, major, minor) in NODES {
        if let Err(error) = tree.device("dev", name, rustix::fs::makedev(major, minor)) {
            note.push_str(&format!("; /dev/{name} and other devices are missing: {error}"));
            break;
        }
    }
    if tree.resolve(Path::new("/proc/self"), Missing::Refuse).is_err() {
        note.push_str("; /proc is empty");
    }
}
