//! The global arguments: those that exist by themselves, those before the first FROM, and what each FROM makes of them.

use std::collections::{BTreeMap, BTreeSet};

use kiln_dockerfile::{Dockerfile, Expander, Linter, Names as _, Together, Variables as _};
use kiln_oci::{Platform, Reference};

use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::request::BuildRequest;

/// Lint of every FROM, wanted or not. Words that cannot be expanded are no finding: they fail the stage that needs them.
pub(super) fn lint_stages(
    linter: &mut Linter<'_>,
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    expander: Expander,
    global_args: &Environment,
    target: usize,
) {
    let declared =
        dockerfile.meta_args.iter().flat_map(|meta| &meta.items).map(|item| item.name.text.as_str());
    let known: BTreeSet<&str> = declared.chain(global_args.names()).collect();
    let none = BTreeMap::new();
    let mut defaults = default_args(dockerfile, request, &none, target);
    let have_defaults = declare_meta_args(dockerfile, &none, expander, &mut defaults).is_ok();
    for stage in &dockerfile.stages {
        let expand = |text: &str, args: &Environment| expander.word(text, args).ok();
        let Some(base) = expand(&stage.base.text, global_args) else { continue };
        let platform = stage.platform.as_ref();
        let platform = platform.and_then(|word| Some((word, expand(&word.text, global_args)?)));
        linter.from(stage, &base, platform.as_ref().map(|(_, expanded)| expanded), &known);
        if let Some((word, expanded)) = &platform {
            let parsed = expanded.text.parse::<Platform>().ok();
            let parsed = parsed.as_ref().map(|parsed| (parsed.os.as_str(), parsed.architecture.as_str()));
            linter.platform(stage, word, expanded, &request.platform.to_string(), parsed);
        }
        if have_defaults && let Some(base) = expand(&stage.base.text, &defaults) {
            linter.default_base(stage, base.text.parse::<Reference>().is_ok());
        }
    }
}

/// The arguments that exist without being declared (BuildKit's platform arguments).
pub(super) fn default_args(
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    build_args: &BTreeMap<String, String>,
    target: usize,
) -> Environment {
    let host = Platform::host();
    let platform = &request.platform;
    let stage = request.target.clone().unwrap_or_else(|| {
        dockerfile.stages[target].name.as_ref().map_or_else(|| "default".to_owned(), |name| name.text.clone())
    });
    let variant = |platform: &Platform| platform.variant.clone().unwrap_or_default();
    let version = |platform: &Platform| platform.os_version.clone().unwrap_or_default();
    let defaults = [
        ("BUILDPLATFORM", host.to_string()),
        ("BUILDOS", host.os.clone()),
        ("BUILDOSVERSION", version(&host)),
        ("BUILDARCH", host.architecture.clone()),
        ("BUILDVARIANT", variant(&host)),
        ("TARGETPLATFORM", platform.to_string()),
        ("TARGETOS", platform.os.clone()),
        ("TARGETOSVERSION", version(platform)),
        ("TARGETARCH", platform.architecture.clone()),
        ("TARGETVARIANT", variant(platform)),
        ("TARGETSTAGE", stage),
    ];
    let chosen = |(name, value): (&str, String)| {
        let value = build_args.get(name).cloned().unwrap_or(value);
        (name.to_owned(), value)
    };
    defaults.into_iter().map(chosen).collect()
}

pub(super) fn declare_meta_args(
    dockerfile: &Dockerfile,
    build_args: &BTreeMap<String, String>,
    expander: Expander,
    args: &mut Environment,
) -> Result<()> {
    let mut together = Together::default();
    for item in dockerfile.meta_args.iter().flat_map(|meta| &meta.items) {
        let name = &item.name.text;
        let value = match (build_args.get(name), &item.default) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(default)) => {
                let expanded = expander.word(&default.text, args);
                Some(expanded.map_err(|error| error.at(default.span))?.text)
            }
            (None, None) => None,
        };
        if let Some(value) = value {
            together.count(name, &value).map_err(|error| error.at(item.name.span))?;
            args.set(name, &value);
        }
    }
    Ok(())
}

/// `SOURCE_DATE_EPOCH` as build argument or global ARG, in seconds since the epoch.
pub(super) fn source_date_epoch(request: &BuildRequest, global_args: &Environment) -> Result<Option<i64>> {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    // What RFC 3339 can tell, and the time zones of the last day cannot make another year of.
    const YEARS: std::ops::Range<i64> = -62_167_219_200..253_402_207_200;
    let given = request.build_args.get(NAME).map(String::as_str);
    let Some(value) = given.or_else(|| global_args.get(NAME)).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let seconds = value.parse().map_err(|_| {
        Error::Unsupported(format!("{NAME}={value}: expected seconds since 1970-01-01; anything else"))
    })?;
    if !YEARS.contains(&seconds) {
        return Err(Error::Unsupported(format!("{NAME}={value}: a year outside of 0 to 9999")));
    }
    Ok(Some(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_before_the_first_stage_are_bounded_together() {
        let declare = |count: usize| {
            let first = format!("ARG a0={}\nARG a={}\n", "x".repeat(1 << 12), "$a0".repeat(1 << 8));
            let more: String = (1..count).map(|number| format!("ARG a{number}=$a\n")).collect();
            let parsed = kiln_dockerfile::parse(format!("{first}{more}FROM scratch\n"));
            assert!(!parsed.has_errors(), "{:?}", parsed.diagnostics);
            let mut args = Environment::default();
            declare_meta_args(&parsed.dockerfile, &BTreeMap::new(), Expander::new('\\'), &mut args)
        };
        declare(10).expect("not too much");
        let error = declare(100).expect_err("too much");
        assert!(error.to_string().contains("together"), "{error}");
    }
}
