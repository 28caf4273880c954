//! Events in (time, sequence) order: at one instant, first come, first served.

use crate::units::Time;

/// A priority queue of events. Ties in time are broken by insertion order, so that a run is
/// reproducible whatever the heap does.
///
/// A 4-ary heap: half as deep as a binary one, and the four children share a cache line or two.
#[derive(Debug, Clone)]
pub struct EventQueue<E> {
    heap: Vec<Entry<E>>,
    next_sequence: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry<E> {
    time: Time,
    sequence: u64,
    event: E,
}

impl<E> Entry<E> {
    fn before(&self, other: &Self) -> bool {
        (self.time, self.sequence) < (other.time, other.sequence)
    }
}

const ARITY: usize = 4;

impl<E: Copy> EventQueue<E> {
    /// An empty queue.
    pub fn new() -> Self {
        EventQueue {
            heap: Vec::new(),
            next_sequence: 0,
        }
    }

    /// Adds an event at `time`.
    pub fn push(&mut self, time: Time, event: E) {
        let entry = Entry {
            time,
            sequence: self.next_sequence,
            event,
        };
        self.next_sequence += 1;
        let mut hole = self.heap.len();
        self.heap.push(entry);
        while hole > 0 {
            let parent = (hole - 1) / ARITY;
            if !entry.before(&self.heap[parent]) {
                break;
            }
            self.heap[hole] = self.heap[parent];
            hole = parent;
        }
        self.heap[hole] = entry;
    }

    /// Removes the earliest event.
    pub fn pop(&mut self) -> Option<(Time, E)> {
        let last = self.heap.pop()?;
        let Some(&first) = self.heap.first() else {
            return Some((last.time, last.event));
        };
        let len = self.heap.len();
        let mut hole = 0;
        loop {
            let begin = hole * ARITY + 1;
            if begin >= len {
                break;
            }
            let mut child = begin;
            for other in begin + 1..(begin + ARITY).min(len) {
                if self.heap[other].before(&self.heap[child]) {
                    child = other;
                }
            }
            if !self.heap[child].before(&last) {
                break;
            }
            self.heap[hole] = self.heap[child];
            hole = child;
        }
        self.heap[hole] = last;
        Some((first.time, first.event))
    }

    /// Events waiting.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl<E: Copy> Default for EventQueue<E> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn events_leave_in_time_order_and_first_come_first_served(times in prop::collection::vec(0u64..20, 0..200)) {
            let mut queue = EventQueue::new();
            for (index, &time) in times.iter().enumerate() {
                queue.push(Time::from_ps(time), index);
            }
            let mut expected: Vec<(u64, usize)> = times.iter().copied().zip(0..).collect();
            expected.sort_unstable();
            let popped: Vec<(u64, usize)> =
                std::iter::from_fn(|| queue.pop()).map(|(time, index)| (time.as_ps(), index)).collect();
            prop_assert_eq!(popped, expected);
        }
    }
}
