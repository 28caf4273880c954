//! Routing that several scenarios share: traces read and steps drawn once, while there is room.

use super::Recorded;
use crate::error::Error;
use crate::settings::RoutingSettings;
use moeplan_traces::{RoutingStep, Shape};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Most bytes of drawn steps that are kept, and as many of traces: eight steps at 2,048 GPUs with two
/// experts each, or 500 at 256.
const ROOM_BYTES: usize = 1 << 28;

/// What a step is drawn from: settings, shape, seed, layer and step.
pub(super) type StepKey = (RoutingSettings, Shape, u64, usize, usize);

/// What is read of a trace: settings, and whether all of its layers.
pub(super) type TraceKey = (RoutingSettings, bool);

/// Traces and steps by what they are made of. Clones share them; the default keeps nothing.
#[derive(Debug, Clone, Default)]
pub struct Kept(Option<Arc<Shelves>>);

#[derive(Debug)]
struct Shelves {
    traces: Mutex<Shelf<TraceKey, Vec<Recorded>>>,
    steps: Mutex<Shelf<StepKey, RoutingStep>>,
}

impl Kept {
    /// Keeps what was used last.
    pub fn some() -> Kept {
        Kept(Some(Arc::new(Shelves {
            traces: Mutex::new(Shelf::new(ROOM_BYTES)),
            steps: Mutex::new(Shelf::new(ROOM_BYTES)),
        })))
    }

    /// The layers of a trace, by `read` where they are not kept.
    pub(super) fn trace(
        &self,
        key: impl FnOnce() -> TraceKey,
        read: impl FnOnce() -> Result<Vec<Recorded>, Error>,
    ) -> Result<Arc<Vec<Recorded>>, Error> {
        let shelf = self.0.as_ref().map(|shelves| &shelves.traces);
        let bytes = |layers: &Vec<Recorded>| {
            let steps = layers.iter().flat_map(|layer| &layer.steps);
            steps.map(bytes_of).sum()
        };
        kept(shelf, key, read, bytes)
    }

    /// The step of `key`, by `draw` where it is not kept.
    pub(super) fn step(
        &self,
        key: impl FnOnce() -> StepKey,
        draw: impl FnOnce() -> Result<RoutingStep, Error>,
    ) -> Result<Arc<RoutingStep>, Error> {
        let shelf = self.0.as_ref().map(|shelves| &shelves.steps);
        kept(shelf, key, draw, bytes_of)
    }
}

fn bytes_of(step: &RoutingStep) -> usize {
    size_of_val(step.all_counts())
}

/// What `shelf` has for `key`, or what `make` makes. Made without the lock: two threads may make the
/// same, but none waits for another.
fn kept<K: Ord + Clone, V>(
    shelf: Option<&Mutex<Shelf<K, V>>>,
    key: impl FnOnce() -> K,
    make: impl FnOnce() -> Result<V, Error>,
    bytes: impl Fn(&V) -> usize,
) -> Result<Arc<V>, Error> {
    let Some(shelf) = shelf else {
        return make().map(Arc::new);
    };
    let lock = || shelf.lock().unwrap_or_else(PoisonError::into_inner);
    let key = key();
    if let Some(found) = lock().get(&key) {
        return Ok(found);
    }
    let made = Arc::new(make()?);
    lock().put(key, made.clone(), bytes(&made));
    Ok(made)
}

/// Values by key, of which those used last are kept.
#[derive(Debug)]
struct Shelf<K, V> {
    /// Bytes there is room for.
    room: usize,
    /// Bytes in use.
    used: usize,
    /// Uses so far.
    uses: u64,
    /// By key: its last use, its bytes, the value.
    values: BTreeMap<K, (u64, usize, Arc<V>)>,
    /// Keys by last use.
    by_use: BTreeMap<u64, K>,
}

impl<K: Ord + Clone, V> Shelf<K, V> {
    fn new(room: usize) -> Shelf<K, V> {
        Shelf {
            room,
            used: 0,
            uses: 0,
            values: BTreeMap::new(),
            by_use: BTreeMap::new(),
        }
    }

    fn get(&mut self, key: &K) -> Option<Arc<V>> {
        let (last, _, value) = self.values.get_mut(key)?;
        self.uses += 1;
        self.by_use.remove(last);
        self.by_use.insert(self.uses, key.clone());
        *last = self.uses;
        Some(value.clone())
    }

    fn put(&mut self, key: K, value: Arc<V>, bytes: usize) {
        // A key and its place in both maps weigh something too.
        let bytes = bytes + 2 * size_of::<K>();
        if self.values.contains_key(&key) || bytes > self.room {
            return;
        }
        while self.used + bytes > self.room
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            let freed = self.values.remove(&oldest);
            self.used -= freed.map_or(0, |(_, bytes, _)| bytes);
        }
        self.uses += 1;
        self.used += bytes;
        self.by_use.insert(self.uses, key.clone());
        self.values.insert(key, (self.uses, bytes, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_is_kept_and_there_is_never_more_than_room() {
        let weight = 100 + 2 * size_of::<u32>();
        let mut shelf = Shelf::new(3 * weight);
        for key in 0..3u32 {
            shelf.put(key, Arc::new(key), 100);
        }
        assert_eq!(shelf.get(&0).as_deref(), Some(&0));
        shelf.put(3, Arc::new(3), 100);
        assert_eq!(shelf.get(&1), None, "1 was used longest ago");
        assert_eq!(
            [0, 2, 3].map(|key| shelf.get(&key).as_deref().copied()),
            [0, 2, 3].map(Some)
        );
        shelf.put(4, Arc::new(4), 4 * weight);
        assert_eq!(shelf.get(&4), None, "larger than the room");
        assert_eq!(shelf.used, 3 * weight);
        assert_eq!(shelf.values.len(), shelf.by_use.len());
    }
}
