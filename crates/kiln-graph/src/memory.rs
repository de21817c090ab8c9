//! Records in memory: a fixture for tests of this crate and of executors. They are gone with the process.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{Claim, Entry, Key, Preimage, Record, Records};

/// Records in memory. Clones share the same records, as processes share a store.
#[derive(Debug)]
pub struct Memory<R> {
    shared: Arc<Shared<R>>,
}

#[derive(Debug)]
struct Shared<R> {
    contents: Mutex<Contents<R>>,
    released: Condvar,
}

#[derive(Debug)]
struct Contents<R> {
    /// The last recorded at the end
    order: Vec<Key>,
    records: HashMap<Key, (Preimage, Record<R>)>,
    claims: HashSet<Key>,
    lookups: usize,
}

impl<R> Default for Memory<R> {
    fn default() -> Memory<R> {
        let contents =
            Contents { order: Vec::new(), records: HashMap::new(), claims: HashSet::new(), lookups: 0 };
        Memory { shared: Arc::new(Shared { contents: Mutex::new(contents), released: Condvar::new() }) }
    }
}

impl<R> Clone for Memory<R> {
    fn clone(&self) -> Memory<R> {
        Memory { shared: Arc::clone(&self.shared) }
    }
}

impl<R> Memory<R> {
    /// No records yet.
    pub fn new() -> Memory<R> {
        Memory::default()
    }

    /// Forgets the data of a recorded result, as a collection does; says whether there was any.
    pub fn forget_data(&self, key: &Key) -> bool {
        let mut contents = self.contents();
        let record = contents.records.get_mut(key);
        record.is_some_and(|(_, record)| std::mem::replace(&mut record.present, false))
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.contents().records.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many claims are held.
    pub fn claims(&self) -> usize {
        self.contents().claims.len()
    }

    /// How many lookups there were.
    pub fn lookups(&self) -> usize {
        self.contents().lookups
    }

    fn contents(&self) -> MutexGuard<'_, Contents<R>> {
        self.shared.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A claim that is held.
#[derive(Debug)]
pub struct Guard<R> {
    memory: Memory<R>,
    key: Key,
}

impl<R> Drop for Guard<R> {
    fn drop(&mut self) {
        self.memory.contents().claims.remove(&self.key);
        self.memory.shared.released.notify_all();
    }
}

impl<R: Clone + Send + Sync> Records for Memory<R> {
    type Result = R;
    type Error = Infallible;
    type Guard = Guard<R>;

    fn lookup(&self, key: &Key) -> Result<Option<Record<R>>, Infallible> {
        let mut contents = self.contents();
        contents.lookups += 1;
        Ok(contents.records.get(key).map(|(_, record)| record.clone()))
    }

    fn candidates(&self, preimage: &Preimage) -> Result<Vec<Preimage>, Infallible> {
        let contents = self.contents();
        let newest_first = contents.order.iter().rev().map(|key| &contents.records[key].0);
        let name = preimage.operation.name();
        Ok(newest_first.filter(|recorded| recorded.operation.name() == name).cloned().collect())
    }

    fn claim(&self, key: &Key) -> Result<Claim<Guard<R>>, Infallible> {
        if self.contents().claims.insert(*key) {
            Ok(Claim::Owned(Guard { memory: self.clone(), key: *key }))
        } else {
            Ok(Claim::Busy { holder: "another thread".to_owned() })
        }
    }

    fn wait(&self, key: &Key, timeout: Duration) -> Result<(), Infallible> {
        let busy = |contents: &mut Contents<R>| contents.claims.contains(key);
        let waited = self.shared.released.wait_timeout_while(self.contents(), timeout, busy);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    fn record(&self, entry: Entry<'_, R>) -> Result<R, Infallible> {
        let mut contents = self.contents();
        let record = Record { result: entry.result.clone(), present: true, duration: entry.duration };
        contents.order.retain(|key| *key != entry.key);
        contents.order.push(entry.key);
        contents.records.insert(entry.key, (entry.preimage.clone(), record));
        Ok(entry.result.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_the_contract() {
        let memory = Memory::new();
        crate::contract::records(|| memory.clone(), u32::from);
    }
}
