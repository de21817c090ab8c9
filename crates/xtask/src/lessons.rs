//! `cargo xtask lessons --from DIRECTORY`: Dockerfiles of courses, built as they are written, on stand-ins for their bases
//! that are made of Debian packages. What they copy is made here; what they install comes from the registries that this
//! machine's configuration names.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::demo::{BASE, Kiln, make_base};
use crate::machine::{self, run, say, target_directory};

/// A base of lessons, by its name without the tag, and the packages that stand in for it.
struct StandIn {
    name: &'static str,
    packages: &'static str,
    /// Lines of a Dockerfile that make it like the original besides.
    also: &'static str,
}

const STAND_INS: [StandIn; 7] = [
    StandIn {
        name: "python",
        packages: "python3-pip python-is-python3",
        also: "RUN rm /usr/lib/python3*/EXTERNALLY-MANAGED\n",
    },
    StandIn { name: "golang", packages: "golang-go", also: "" },
    StandIn { name: "node", packages: "nodejs npm", also: "" },
    StandIn { name: "debian", packages: "ca-certificates", also: "" },
    StandIn { name: "alpine", packages: "ca-certificates", also: APK },
    StandIn {
        name: "maven",
        packages: "maven openjdk-17-jdk-headless libsurefire-java libmaven-antrun-plugin-java \
                   libmaven-assembly-plugin-java libmaven-clean-plugin-java libmaven-compiler-plugin-java \
                   libmaven-dependency-plugin-java libmaven-deploy-plugin-java libmaven-install-plugin-java \
                   libmaven-jar-plugin-java libmaven-resources-plugin-java libmaven-site-plugin-java",
        also: MAVEN,
    },
    StandIn { name: "openjdk", packages: "openjdk-17-jre-headless", also: "" },
];

/// `apk add`, done by apt-get: of what lessons add, the names are the same.
const APK: &str = r#"COPY --chmod=755 <<'END' /usr/local/bin/apk
#!/bin/sh
[ "$1" = add ] && shift || exit 1
[ "$1" != --no-cache ] || shift
apt-get update -qq && exec apt-get install -qq -y --no-install-recommends "$@"
END
"#;

/// Maven takes everything from Debian's packages.
const MAVEN: &str = "COPY <<END /root/.m2/settings.xml
<settings><localRepository>/usr/share/maven-repo</localRepository><offline>true</offline></settings>
END
";

/// What lessons copy into their images: small programs that use what is installed.
const CONTEXT: [(&str, &str); 10] = [
    ("requirements.txt", "six==1.16.0\n"),
    ("app.py", "import six\nprint('six', six.__version__)\n"),
    ("go.mod", "module lesson\n\ngo 1.19\n"),
    ("main.go", "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(\"go\") }\n"),
    (
        "package.json",
        "{\"name\": \"lesson\", \"version\": \"1.0.0\", \"dependencies\": {\"ms\": \"2.1.3\"}}\n",
    ),
    ("server.js", "console.log('ms', require('ms')('1s'))\n"),
    ("app.js", "console.log('ms', require('ms')('1s'))\n"),
    ("hello.txt", "hello\n"),
    ("pom.xml", PROJECT),
    (
        "src/main/java/lesson/App.java",
        "package lesson;\n\npublic class App {\n    public static void main(String[] words) {\n        \
         System.out.println(\"java\");\n    }\n}\n",
    ),
];

/// A Java program as Maven describes it. The version is that of Debian's package: Maven would ask for another one.
const PROJECT: &str = r#"<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>lesson</groupId>
  <artifactId>lesson</artifactId>
  <version>1.0</version>
  <properties>
    <maven.compiler.source>17</maven.compiler.source>
    <maven.compiler.target>17</maven.compiler.target>
  </properties>
  <build>
    <plugins>
      <plugin>
        <artifactId>maven-jar-plugin</artifactId>
        <configuration>
          <archive><manifest><mainClass>lesson.App</mainClass></manifest></archive>
        </configuration>
      </plugin>
      <plugin>
        <artifactId>maven-site-plugin</artifactId>
        <version>3.12.1</version>
      </plugin>
    </plugins>
  </build>
</project>
"#;

/// Builds every Dockerfile of the pages below a directory, and runs what comes out.
pub(crate) fn run_lessons(directory: &Path) -> Result<()> {
    let lessons = lessons(directory)?;
    if lessons.is_empty() {
        bail!("no page of {} has a Dockerfile between fences", directory.display());
    }
    say("building kiln");
    run(machine::cargo().args(["build", "--quiet", "--package", "kiln"]))?;
    let place = target_directory().join("demo");
    std::fs::create_dir_all(&place)?;
    let kiln = Kiln { program: target_directory().join("debug/kiln"), root: place.join("store") };
    make_base(&kiln, &place)?;
    let context = place.join("lesson");
    std::fs::create_dir_all(&context)?;
    for (name, text) in CONTEXT {
        let file = context.join(name);
        std::fs::create_dir_all(file.parent().unwrap_or(&context))?;
        std::fs::write(file, text)?;
    }
    let mut rows = Vec::new();
    for lesson in &lessons {
        let told = attempt(&kiln, &context, lesson)?;
        rows.push(format!("{}  {:<36}  {told}", lesson.place, lesson.bases.join(" ")));
    }
    say("what was built as written");
    println!("{}", rows.join("\n"));
    Ok(())
}

/// A Dockerfile of a page.
#[derive(Debug, PartialEq, Eq)]
struct Lesson {
    /// Page and line.
    place: String,
    text: String,
    /// Names of images that are no stages of its own.
    bases: Vec<String>,
}

fn lessons(directory: &Path) -> Result<Vec<Lesson>> {
    let entries = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut pages: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    pages.sort();
    let mut found = Vec::new();
    for page in pages.iter().filter(|page| page.is_file()) {
        let name = page.file_name().unwrap_or_default().to_string_lossy();
        found.extend(of_page(&name, &String::from_utf8_lossy(&std::fs::read(page)?)));
    }
    Ok(found)
}

/// What stands between the fences of a page and has a FROM.
fn of_page(name: &str, page: &str) -> Vec<Lesson> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in page.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(language)) if language.trim().eq_ignore_ascii_case("dockerfile") => {
                open = Some((number + 2, String::new()));
            }
            (Some(_), Some(_)) => {
                let (start, text) = open.take().unwrap_or_default();
                let bases = bases(&text);
                if !bases.is_empty() {
                    found.push(Lesson { place: format!("{name}:{start}"), text, bases });
                }
            }
            (Some((_, text)), None) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, _) => {}
        }
    }
    found
}

fn bases(dockerfile: &str) -> Vec<String> {
    let (mut bases, mut stages) = (Vec::new(), vec!["scratch".to_owned()]);
    for line in dockerfile.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [from, base, rest @ ..] = words.as_slice() else { continue };
        if !from.eq_ignore_ascii_case("from") {
            continue;
        }
        if !stages.iter().any(|stage| stage == base) && !bases.iter().any(|known| known == base) {
            bases.push((*base).to_owned());
        }
        stages.extend(rest.get(1).map(|stage| (*stage).to_owned()));
    }
    bases
}

/// Builds and runs one; tells how that went.
fn attempt(kiln: &Kiln, context: &Path, lesson: &Lesson) -> Result<String> {
    for base in &lesson.bases {
        let name = base.split(':').next().unwrap_or(base);
        let Some(stand_in) = STAND_INS.iter().find(|stand_in| stand_in.name == name) else {
            return Ok(format!("not tried: there is no stand-in for {base}"));
        };
        make_stand_in(kiln, context, stand_in)?;
        run(kiln.command("tag").arg(format!("stand-in-{name}")).arg(base))?;
    }
    say(&format!("{} ({})", lesson.place, lesson.bases.join(" ")));
    let file = context.with_extension("Dockerfile");
    std::fs::write(&file, &lesson.text)?;
    let mut build = kiln.command("build");
    build.args(["--progress=plain", "--lend", LOANS, "-t", "lesson", "-f"]).arg(&file).arg(context);
    let output = build.stdout(Stdio::inherit()).output().context("cannot start kiln")?;
    let said = String::from_utf8_lossy(&output.stderr);
    eprint!("{said}");
    if !output.status.success() {
        let reason = said.lines().rev().find(|line| line.contains("kiln:")).unwrap_or("no reason is given");
        return Ok(format!("NOT BUILT: {}", reason.trim()));
    }
    let ran = kiln.command("run").args(["--rm", "lesson"]).output().context("cannot start kiln")?;
    let (first, status) = (String::from_utf8_lossy(&ran.stdout), ran.status);
    Ok(match status.success() {
        true => format!("built; it runs and says {:?}", first.lines().next().unwrap_or_default()),
        false => format!("built; run: {status}: {}", String::from_utf8_lossy(&ran.stderr).trim()),
    })
}

/// Settings of the machine that steps see.
const LOANS: &str = "ca,apt,pip,npm,go";

/// Makes a stand-in, if it is not there from an earlier time, and what lessons on it copy.
fn make_stand_in(kiln: &Kiln, context: &Path, stand_in: &StandIn) -> Result<()> {
    let image = format!("stand-in-{}", stand_in.name);
    let StandIn { packages, also, .. } = stand_in;
    let mut dockerfile = format!(
        "FROM {BASE}\nRUN apt-get update && apt-get install -y --no-install-recommends {packages}\n{also}"
    );
    build_from(kiln, &dockerfile, &image, context)?;
    if stand_in.name == "node" && !context.join("package-lock.json").exists() {
        // The lock names where packages come from, which is this machine's registry.
        dockerfile.push_str("WORKDIR /lock\nCOPY package.json .\nRUN npm install --package-lock-only\n");
        build_from(kiln, &dockerfile, "lesson-lock", context)?;
        let mut read = kiln.command("image");
        let lock = machine::output(read.args(["cat", "lesson-lock", "/lock/package-lock.json"]))?;
        std::fs::write(context.join("package-lock.json"), lock)?;
    }
    Ok(())
}

fn build_from(kiln: &Kiln, dockerfile: &str, image: &str, context: &Path) -> Result<()> {
    let file = context.with_extension("stand-in");
    std::fs::write(&file, dockerfile)?;
    run(kiln.command("build").args(["--lend", LOANS, "-t", image, "-f"]).arg(&file).arg(context))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lessons_are_what_has_a_base() {
        let page = "text\n```Dockerfile\nFROM a:1 AS b\nRUN x\nFROM b\nFROM scratch\nFROM c\n```\n```\nFROM no\n```\n\
                    ```dockerfile\nRUN part of one\n```\n";
        let [lesson] = of_page("p", page).try_into().unwrap();
        assert_eq!((lesson.place.as_str(), lesson.text.lines().count()), ("p:3", 5));
        assert_eq!(lesson.bases, ["a:1", "c"]);
    }
}
