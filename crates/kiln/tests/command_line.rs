//! The whole program on command lines that need no store: standard output, standard error and exit status.

use std::process::Command;

fn kiln(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(words)
        .env_remove("KILN_ROOT")
        .env("COLUMNS", "100")
        .output()
        .expect("kiln starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(env!("CARGO_PKG_VERSION"), "VERSION");
    format!(
        "$ kiln {}\n{}[stderr]\n{}[exit {}]",
        words.join(" "),
        text(&output.stdout),
        text(&output.stderr),
        output.status.code().unwrap_or(-1)
    )
}

#[test]
fn version() {
    insta::assert_snapshot!(kiln(&["--version"]), @r#"
    $ kiln --version
    kiln VERSION
    [stderr]
    [exit 0]
    "#);
    insta::assert_snapshot!(kiln(&["-v"]), @r#"
    $ kiln -v
    kiln VERSION
    [stderr]
    [exit 0]
    "#);
    insta::assert_snapshot!(kiln(&["version", "-f", "{{.Client.Version}} {{.Server.Version}}"]), @r#"
    $ kiln version -f {{.Client.Version}} {{.Server.Version}}
    VERSION VERSION
    [stderr]
    [exit 0]
    "#);
    insta::assert_snapshot!(kiln(&["version", "-f", "{{.Cleint}}"]), @r#"
    $ kiln version -f {{.Cleint}}
    [stderr]
    kiln: template parsing error: template: :1:2: executing "" at <.Cleint>: can't evaluate field Cleint in the version
    hint: did you mean .Client? the version has .Client and .Server
    [exit 1]
    "#);
    insta::assert_snapshot!(kiln(&["version", "-f", "{{"]), @r#"
    $ kiln version -f {{
    [stderr]
    kiln: template parsing error: template: :1: unclosed action
    [exit 64]
    "#);
}

#[test]
fn refusals() {
    insta::assert_snapshot!(kiln(&["imges"]), @r#"
    $ kiln imges
    [stderr]
    kiln: unknown command 'imges': did you mean 'images'?
    hint: `kiln --help` lists the commands
    [exit 125]
    "#);
    insta::assert_snapshot!(kiln(&["images", "--nosuch"]), @r#"
    $ kiln images --nosuch
    [stderr]
    kiln: unknown flag: --nosuch
    hint: `kiln images --help` lists the flags
    [exit 125]
    "#);
    insta::assert_snapshot!(kiln(&["run", "--rm"]), @r#"
    $ kiln run --rm
    [stderr]
    kiln: 'kiln run' needs IMAGE
    hint: usage: kiln run [OPTIONS] IMAGE [COMMAND] [ARG]...
    [exit 125]
    "#);
    insta::assert_snapshot!(kiln(&["tag", "a"]), @r#"
    $ kiln tag a
    [stderr]
    kiln: 'kiln tag' needs TARGET_IMAGE[:TAG]
    hint: usage: kiln tag <SOURCE_IMAGE[:TAG]> <TARGET_IMAGE[:TAG]>
    [exit 125]
    "#);
    insta::assert_snapshot!(kiln(&["--root"]), @r#"
    $ kiln --root
    [stderr]
    kiln: --root <DIR> needs a value
    hint: `kiln --help` tells more
    [exit 125]
    "#);
}

/// The environment's store is no word of the command line: one that names no command shows the help.
#[test]
fn a_store_in_the_environment_is_no_command() {
    let place = tempfile::tempdir().expect("a directory");
    for (words, shown) in [
        (&[][..], "Usage: kiln [OPTIONS] <COMMAND>"),
        (&["image"], "Usage: kiln image [OPTIONS] <COMMAND>"),
        (&["--timings"], "kiln: no command is named\n"),
    ] {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        let output = kiln.args(words).env("KILN_ROOT", place.path()).output().expect("kiln starts");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains(shown), "{words:?}: {told}");
    }
}

#[test]
fn help() {
    insta::assert_snapshot!(kiln(&[]), @r#"
    $ kiln 
    [stderr]
    Build, keep, explain and run container images, without a daemon

    Usage: kiln [OPTIONS] <COMMAND>

    Commands:
      build    Build an image from a Dockerfile
      run      Run a command in a new container
      images   List images
      history  Show how an image came to be, step by step
      inspect  Show all that is known about images, as JSON
      tag      Give an image another name
      rmi      Remove names of images, and images with their last name
      load     Load images from an archive or an OCI directory
      save     Write images to an archive or an OCI directory
      import   Make an image of one layer from a tar archive of a root file system
      image    Manage images
      system   Look after the store
      info     Show how kiln works on this machine, and why
      version  Show the version

    Options:
      -v, --version       Print version
          --root <DIR>    Directory of the store [default: /var/lib/kiln as root, else
                          $XDG_DATA_HOME/kiln] [env: KILN_ROOT]
          --timings       Tell on standard error where the time went, by phase and by thread
          --trace <FILE>  Write where the time went to a file for Perfetto and chrome://tracing
      -h, --help          Print help (see more with '--help')

    `kiln COMMAND --help` tells more about a command, `kiln --help` about environment variables.
    [exit 0]
    "#);
    insta::assert_snapshot!(kiln(&["image"]), @r#"
    $ kiln image
    [stderr]
    Manage images

    Usage: kiln image [OPTIONS] <COMMAND>

    Commands:
      ls       List images [alias: list]
      build    Build an image from a Dockerfile
      history  Show how an image came to be, step by step
      inspect  Show all that is known about images, as JSON
      diff     Show what differs between the files of two images
      files    List the files of an image
      cat      Print a file of an image
      unpack   Write the files of an image to a directory
      tag      Give an image another name
      rm       Remove names of images, and images with their last name [alias: remove]
      load     Load images from an archive or an OCI directory
      save     Write images to an archive or an OCI directory
      import   Make an image of one layer from a tar archive of a root file system
      prune    Remove images without a name

    Options:
          --root <DIR>    Directory of the store [default: /var/lib/kiln as root, else
                          $XDG_DATA_HOME/kiln] [env: KILN_ROOT]
          --timings       Tell on standard error where the time went, by phase and by thread
          --trace <FILE>  Write where the time went to a file for Perfetto and chrome://tracing
      -h, --help          Print help
    [exit 0]
    "#);
    insta::assert_snapshot!(kiln(&["history", "--help"]), @r#"
    $ kiln history --help
    Show how an image came to be, step by step

    Usage: kiln history [OPTIONS] <IMAGE>

    Arguments:
      <IMAGE>
              Image: NAME, NAME:TAG or an ID

    Options:
          --format <TEMPLATE>
              Print rows through a Go template: `table` (the default), `table TEMPLATE`, `json` or
              `TEMPLATE`

      -H, --human[=<BOOL>]
              Show ages and rounded sizes; =false for times and bytes

          --no-trunc
              Show everything in full

      -q, --quiet
              Show only IDs

          --root <DIR>
              Directory of the store [default: /var/lib/kiln as root, else $XDG_DATA_HOME/kiln] [env:
              KILN_ROOT]

          --timings
              Tell on standard error where the time went, by phase and by thread

          --trace <FILE>
              Write where the time went to a file for Perfetto and chrome://tracing

      -h, --help
              Print help (see a summary with '-h')

    Examples:
      kiln history app
      kiln history --no-trunc app
      kiln history -H=false --format json app

    Fields: .ID .CreatedSince .CreatedAt .CreatedBy .Size .Comment
    [stderr]
    [exit 0]
    "#);
}

#[test]
fn what_the_environment_gets_wrong_is_named() {
    let place = tempfile::tempdir().expect("a directory");
    let url = "http://127.0.0.1:1/x";
    let missing = place.path().join("nosuch.pem").display().to_string();
    for (variable, value, words, says) in [
        ("HTTP_PROXY", "socks5://u:s3cret@h:1", ["build", url], "HTTP_PROXY or http_proxy names it"),
        ("HTTPS_PROXY", "socks5://u:s3cret@h:1", ["build", url], "HTTPS_PROXY or https_proxy names it"),
        ("SSL_CERT_FILE", &missing, ["build", url], "SSL_CERT_FILE names "),
        ("KILN_LAYERS", "packed", ["inspect", "x"], "KILN_LAYERS is \"packed\": expected"),
        ("COLUMNS", "100", ["import", "nosuch.tar"], "cannot import nosuch.tar"),
    ] {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.args(words).env("KILN_ROOT", place.path().join("store")).env(variable, value);
        let output = kiln.current_dir(place.path()).output().expect("kiln starts");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(says), "{variable}: {told}");
        assert!(!told.contains("s3cret"), "{told}");
    }
}

#[test]
fn what_cannot_be_read_is_named_once() {
    let place = tempfile::tempdir().expect("a directory");
    fs_err::create_dir(place.path().join("directory")).expect("made");
    fs_err::write(place.path().join("empty"), "").expect("written");
    fs_err::write(place.path().join("text"), "text").expect("written");
    fs_err::write(place.path().join("utf16"), b"\xff\xfeF\0R\0O\0M\0").expect("written");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("made");
    // As the link that `<(command)` of a shell is: to a pipe that is elsewhere.
    fs_err::os::unix::fs::symlink(place.path().join("pipe"), place.path().join("substituted"))
        .expect("linked");
    for (words, status, told) in [
        (
            &["import", "directory"][..],
            1,
            "kiln: cannot import directory: Is a directory (os error 21)\n\
             hint: make an archive of it: tar -C directory -c . | kiln import -\n",
        ),
        (&["import", "empty"], 1, "kiln: cannot import empty: it is empty: expected a tar archive\n"),
        (&["import", "nosuch"], 1, "kiln: cannot import nosuch: No such file or directory (os error 2)\n"),
        (&["load", "-i", "nosuch"], 1, "kiln: cannot load nosuch: No such file or directory (os error 2)\n"),
        (
            &["load", "-i", "empty"],
            1,
            "kiln: cannot load empty: it is empty: expected a docker or OCI archive\n",
        ),
        (
            &["images", "--root", "empty"],
            1,
            "kiln: the store PLACE/empty is no directory\nhint: --root and KILN_ROOT name it\n",
        ),
        (
            &["images", "--root", ""],
            125,
            "kiln: --root <DIR> needs a value\nhint: `kiln images --help` tells more\n",
        ),
        (
            &["import", "text"],
            1,
            "kiln: cannot import text: no tar archive: ends in the middle of an entry\n",
        ),
        (
            &["load", "-i", "text"],
            1,
            "kiln: cannot load text: no tar archive: ends in the middle of an entry\n",
        ),
        (
            &["build", "-f", "directory", "."],
            1,
            "kiln: cannot read the Dockerfile directory: Is a directory (os error 21)\n\
             hint: -f names the file itself, as in -f directory/Dockerfile\n",
        ),
        (
            &["build", "-f", "pipe", "."],
            1,
            "kiln: cannot read the Dockerfile pipe: it is a pipe\n\
             hint: standard input can be one: kiln build -f - CONTEXT < pipe\n",
        ),
        (
            &["build", "-f", "substituted", "."],
            1,
            "kiln: cannot read the Dockerfile substituted: it is a pipe\n\
             hint: standard input can be one: kiln build -f - CONTEXT < substituted\n",
        ),
        (
            &["build", "-f", "/dev/null", "."],
            1,
            "kiln: cannot read the Dockerfile /dev/null: it is no regular file\n",
        ),
        (
            &["build", "-f", "empty", "."],
            1,
            "kiln: cannot build empty: error: the Dockerfile cannot be empty\n",
        ),
        (
            &["build", "-f", "utf16", "."],
            1,
            "kiln: cannot build utf16: error: the Dockerfile is in UTF-16: expected UTF-8\n",
        ),
        (
            &["build", "-t", "UP", "."],
            1,
            "kiln: cannot use \"UP\" as a name: invalid reference format: repository name (UP) must be lowercase\n",
        ),
        (
            &["import", "text", ""],
            1,
            "kiln: cannot use \"\" as a name: invalid reference format: \"\" is not [registry/]repository[:tag][@digest]\n",
        ),
        (
            &["save", "-o", "directory", "x"],
            1,
            "kiln: cannot save to directory: Is a directory (os error 21)\n\
             hint: --format oci-dir makes a directory, which must be empty or not there\n",
        ),
        (
            &["save", "--format", "oci-dir", "-o", "text", "x"],
            1,
            "kiln: cannot save to text: Not a directory (os error 20)\n",
        ),
        (
            &["save", "--format", "oci-dir", "-o", ".", "x"],
            1,
            "kiln: cannot save to .: Directory not empty (os error 39)\n",
        ),
        (
            &["images", "--filter", "dangling"],
            125,
            "kiln: invalid filter 'dangling': bad format of filter (expected name=value)\n",
        ),
    ] {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.args(words).env("KILN_ROOT", place.path().join("store")).current_dir(place.path());
        let output = kiln.output().expect("kiln starts");
        let here = place.path().display().to_string();
        let found = String::from_utf8_lossy(&output.stderr).replace(&here, "PLACE");
        assert_eq!(found, told, "{words:?}");
        assert_eq!(output.status.code(), Some(status), "{words:?}");
    }
}

/// Commands that read an archive do not wait for one to be typed.
#[test]
fn a_terminal_is_no_archive() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).expect("granted");
    unlockpt(&master).expect("unlocked");
    let name = ptsname(&master, Vec::new()).expect("its name").into_string().expect("text");
    let place = tempfile::tempdir().expect("a directory");
    for (words, told) in [
        (
            &["build", "-"][..],
            "kiln: no context to build from: standard input is a terminal\n\
             hint: name a directory, or pipe an archive or a Dockerfile into `kiln build -`\n",
        ),
        (
            &["import", "-", "x"],
            "kiln: no archive to import: standard input is a terminal\n\
             hint: name a file, or pipe an archive into `kiln import -`\n",
        ),
        (
            &["load"],
            "kiln: no archive to load: standard input is a terminal\n\
             hint: name a file with -i, or pipe an archive into `kiln load`\n",
        ),
        (
            &["build", "-f", "-", "."],
            "kiln: no Dockerfile to build from: standard input is a terminal\n\
             hint: name a file with -f, or pipe a Dockerfile into it\n",
        ),
    ] {
        let terminal = fs_err::OpenOptions::new().read(true).write(true).open(&name).expect("opened");
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.args(words).env("KILN_ROOT", place.path().join("store")).current_dir(place.path());
        let output = kiln.stdin(terminal.into_parts().0).output().expect("kiln starts");
        assert_eq!(String::from_utf8_lossy(&output.stderr), told, "{words:?}");
        assert_eq!(output.status.code(), Some(125), "{words:?}");
        assert!(!place.path().join("store").exists(), "{words:?}");
    }
}

#[test]
fn a_closed_standard_output_takes_nothing() {
    let store = tempfile::tempdir().expect("a directory");
    let run = |words: &str| {
        let script = format!("exec \"$0\" --root \"$1\" {words}");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_kiln")]).arg(store.path());
        let output = command.env_remove("KILN_ROOT").output().expect("kiln starts");
        (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
    };
    let lost = "kiln: cannot write to standard output: Bad file descriptor (os error 9)\n".to_owned();
    for words in ["images >&-", "info >&-", "save nosuch >&-", "--help >&-", "--version >&-"] {
        assert_eq!(run(words), (lost.clone(), Some(1)), "{words}");
    }
    for words in ["images -q >&-", "images >/dev/null", "images 1<>/dev/null", "--help 1<>/dev/null"] {
        assert_eq!(run(words), (String::new(), Some(0)), "{words}");
    }
}
