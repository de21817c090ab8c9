//! A stage's variables, as BuildKit keeps them: of a name the last setting counts, and its place among the others is where that
//! one stands. A step keeps all that it sees without a copy of it: settings are one row that only grows, and whoever keeps them
//! keeps a place in it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use kiln_dockerfile::{Names, Variables};

/// Names and values, found by name at once however many there are. Clones share them until one is changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    settings: Settings,
    values: Arc<HashMap<Arc<str>, Arc<str>>>,
}

/// All settings up to some place.
#[derive(Clone, Default)]
pub(crate) struct Settings(Option<Arc<Setting>>);

struct Setting {
    name: Arc<str>,
    value: Arc<str>,
    before: Settings,
}

impl Environment {
    /// Sets a variable, which moves behind all others.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        let known = self.values.get_key_value(name).map(|(known, _)| Arc::clone(known));
        let (name, value) = (known.unwrap_or_else(|| Arc::from(name)), Arc::<str>::from(value));
        Arc::make_mut(&mut self.values).insert(Arc::clone(&name), Arc::clone(&value));
        let before = std::mem::take(&mut self.settings);
        self.settings = Settings(Some(Arc::new(Setting { name, value, before })));
    }

    /// What is set now, to be kept.
    pub(crate) fn settings(&self) -> Settings {
        self.settings.clone()
    }
}

impl Settings {
    /// Whether they are the very same, up to the same place of one row.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (None, None) => true,
            _ => false,
        }
    }

    /// Names and values, each name where it was set last.
    pub(crate) fn pairs(&self) -> Vec<(&str, &str)> {
        let mut seen = HashSet::new();
        let mut pairs: Vec<_> = self
            .iter()
            .filter(|setting| seen.insert(&*setting.name))
            .map(|setting| (&*setting.name, &*setting.value))
            .collect();
        pairs.reverse();
        pairs
    }

    /// From the last one to the first.
    fn iter(&self) -> impl Iterator<Item = &Setting> {
        std::iter::successors(self.0.as_deref(), |setting| setting.before.0.as_deref())
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.pairs()).finish()
    }
}

impl Drop for Setting {
    /// One after the other: each within the one behind it, a long row would take the whole stack.
    fn drop(&mut self) {
        let mut before = self.before.0.take();
        while let Some(mut setting) = before.and_then(Arc::into_inner) {
            before = setting.before.0.take();
        }
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(pairs: T) -> Self {
        let mut environment = Self::default();
        pairs.into_iter().for_each(|(name, value)| environment.set(&name, &value));
        environment
    }
}

impl Variables for Environment {
    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|value| &**value)
    }
}

impl Names for Environment {
    fn names(&self) -> Vec<&str> {
        self.settings.pairs().into_iter().map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The settings that several places have, each once, however many have it.
    pub(crate) fn distinct<'a>(all: impl IntoIterator<Item = &'a Settings>) -> usize {
        let mut seen = HashSet::new();
        for settings in all {
            // What comes before one that was seen was seen, too.
            let new = settings.iter().take_while(|setting| seen.insert(std::ptr::from_ref(*setting)));
            new.for_each(drop);
        }
        seen.len()
    }

    #[test]
    fn a_long_row_is_given_up_without_a_deep_stack() {
        let mut environment = Environment::default();
        (0..300_000).for_each(|number| environment.set("name", &number.to_string()));
        let kept = environment.settings();
        environment.set("other", "x");
        drop(environment);
        assert_eq!(kept.pairs(), [("name", "299999")]);
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(move || drop(kept))
            .expect("started")
            .join()
            .expect("ended");
    }

    proptest! {
        /// As a list in which a name moves to the end when it is set.
        #[test]
        fn a_list_says_the_same(set in prop::collection::vec(("[a-e]", "[xyz]"), 0..12)) {
            let mut list: Vec<(String, String)> = Vec::new();
            let mut environment = Environment::default();
            let mut kept = Vec::new();
            for (name, value) in set {
                list.retain(|(known, _)| *known != name);
                list.push((name.clone(), value.clone()));
                environment.set(&name, &value);
                kept.push((environment.settings(), list.clone()));
                for name in ["a", "b", "c", "d", "e", "f"] {
                    let found = list.iter().find(|(known, _)| known == name);
                    prop_assert_eq!(environment.get(name), found.map(|(_, value)| value.as_str()));
                }
            }
            prop_assert_eq!(environment.names().len(), list.len());
            prop_assert_eq!(distinct(kept.iter().map(|(settings, _)| settings)), kept.len());
            for (settings, list) in &kept {
                let list: Vec<_> = list.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                prop_assert_eq!(settings.pairs(), list);
            }
        }
    }
}
