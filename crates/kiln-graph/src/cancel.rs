//! A token that tells running operations to stop.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

type Callback = Box<dyn FnOnce() + Send>;

/// A token that is set once and never reset. Clones are the same token.
///
/// [`Cancel::cancel`] takes a lock and calls callbacks: call it from a thread that waits for signals, never from
/// a signal handler.
#[derive(Clone, Default)]
pub struct Cancel {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    canceled: AtomicBool,
    callbacks: Mutex<Callbacks>,
    wakeup: Condvar,
    /// What sets it when its parent is set.
    parent: OnceLock<OnCancel>,
}

#[derive(Default)]
struct Callbacks {
    next: u64,
    waiting: BTreeMap<u64, Callback>,
}

impl Cancel {
    /// A token that is not set.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// A token that is set as soon as this one is, and can be set by itself.
    pub fn child(&self) -> Cancel {
        let child = Cancel::new();
        let shared: Weak<Shared> = Arc::downgrade(&child.shared);
        let link = self.on_cancel(move || {
            if let Some(shared) = shared.upgrade() {
                Cancel { shared }.cancel();
            }
        });
        let _ = child.shared.parent.set(link);
        child
    }

    /// Sets the token, wakes sleepers and calls callbacks on this thread. Again, it does nothing.
    pub fn cancel(&self) {
        let callbacks = {
            let mut callbacks = self.callbacks();
            self.shared.canceled.store(true, Ordering::SeqCst);
            std::mem::take(&mut callbacks.waiting)
        };
        self.shared.wakeup.notify_all();
        for callback in callbacks.into_values() {
            callback();
        }
    }

    /// Whether the token is set.
    pub fn is_canceled(&self) -> bool {
        self.shared.canceled.load(Ordering::SeqCst)
    }

    /// Calls `callback` once when the token is set: at once if it is set already, never after the returned value
    /// was dropped (a call that has begun may still be going on then).
    #[must_use = "dropping it takes the callback back"]
    pub fn on_cancel(&self, callback: impl FnOnce() + Send + 'static) -> OnCancel {
        let mut callbacks = self.callbacks();
        let number = callbacks.next;
        callbacks.next += 1;
        if self.is_canceled() {
            drop(callbacks);
            callback();
        } else {
            callbacks.waiting.insert(number, Box::new(callback));
        }
        OnCancel { cancel: self.clone(), number }
    }

    /// Sleeps until the token is set or the time is over; says whether it is set.
    pub fn sleep(&self, duration: Duration) -> bool {
        let deadline = Instant::now() + duration;
        let mut callbacks = self.callbacks();
        while !self.is_canceled() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let woken = self.shared.wakeup.wait_timeout(callbacks, left);
            callbacks = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        self.is_canceled()
    }

    fn callbacks(&self) -> MutexGuard<'_, Callbacks> {
        self.shared.callbacks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_canceled()).finish()
    }
}

/// A callback that waits; dropping this takes it back.
#[derive(Debug)]
pub struct OnCancel {
    cancel: Cancel,
    number: u64,
}

impl Drop for OnCancel {
    fn drop(&mut self) {
        let callback = self.cancel.callbacks().waiting.remove(&self.number);
        drop(callback);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn callbacks_are_called_once_unless_taken_back() {
        let calls = Arc::new(AtomicUsize::new(0));
        let add = |amount| {
            let calls = Arc::clone(&calls);
            move || {
                calls.fetch_add(amount, Ordering::SeqCst);
            }
        };
        let cancel = Cancel::new();
        let kept = cancel.on_cancel(add(1));
        drop(cancel.on_cancel(add(10)));
        assert!(!cancel.is_canceled());
        cancel.cancel();
        cancel.clone().cancel();
        let late = cancel.on_cancel(add(100));
        assert_eq!(calls.load(Ordering::SeqCst), 101);
        drop((kept, late));
    }

    #[test]
    fn a_child_is_set_with_its_parent_and_not_the_other_way_round() {
        let parent = Cancel::new();
        let (first, second) = (parent.child(), parent.child());
        first.cancel();
        assert!(first.is_canceled() && !second.is_canceled() && !parent.is_canceled());
        drop(parent.child());
        assert_eq!(parent.callbacks().waiting.len(), 2);
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(second.sleep(Duration::from_secs(60))));
            parent.cancel();
        });
        assert!(parent.child().is_canceled());
    }

    #[test]
    fn sleep_ends_with_the_time_or_the_token() {
        let cancel = Cancel::new();
        assert!(!cancel.sleep(Duration::from_millis(1)));
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(cancel.sleep(Duration::from_secs(60))));
            cancel.cancel();
        });
        assert!(start.elapsed() < Duration::from_secs(30));
        assert!(cancel.sleep(Duration::from_secs(60)));
    }
}
