//! A stage's variables: in the order in which they came, found by name at once however many there are.

use std::collections::HashMap;

use kiln_dockerfile::Variables;

/// Names and values. Of a name that a base image's config has more than once every pair stays: the last one is read,
/// the first one is set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    pairs: Vec<(String, String)>,
    places: HashMap<String, Places>,
}

/// Where a name stands among the pairs.
#[derive(Clone, Copy, Debug)]
struct Places {
    first: usize,
    last: usize,
}

impl Environment {
    /// All of them, in order.
    pub(crate) fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// Sets a variable where it stands, or else behind all others.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        match self.places.get(name) {
            Some(places) => value.clone_into(&mut self.pairs[places.first].1),
            None => self.push(name.to_owned(), value.to_owned()),
        }
    }

    fn push(&mut self, name: String, value: String) {
        let place = self.pairs.len();
        let places = self.places.entry(name.clone()).or_insert(Places { first: place, last: place });
        places.last = place;
        self.pairs.push((name, value));
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(pairs: T) -> Self {
        let mut environment = Self::default();
        pairs.into_iter().for_each(|(name, value)| environment.push(name, value));
        environment
    }
}

impl Variables for Environment {
    fn get(&self, name: &str) -> Option<&str> {
        self.places.get(name).map(|places| self.pairs[places.last].1.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As a list that is searched from one end to the other.
        #[test]
        fn a_list_that_is_searched_says_the_same(
            base in prop::collection::vec(("[a-d]", "[xyz]"), 0..6),
            set in prop::collection::vec(("[a-e]", "[xyz]"), 0..6),
        ) {
            let mut list = base.clone();
            let mut environment: Environment = base.into_iter().collect();
            for (name, value) in set {
                match list.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, known)) => known.clone_from(&value),
                    None => list.push((name.clone(), value.clone())),
                }
                environment.set(&name, &value);
                prop_assert_eq!(environment.pairs(), list.as_slice());
                for name in ["a", "b", "c", "d", "e", "f"] {
                    let found = list.iter().rev().find(|(known, _)| known == name);
                    prop_assert_eq!(environment.get(name), found.map(|(_, value)| value.as_str()));
                }
            }
        }
    }
}
