//! The symbols of `libnccl.so` that the backend calls: sends and receives in groups.
//!
//! The calls of one communicator in a group are one launch, on all streams they name: it starts when it is at the head of
//! each of them, and ends when all its messages are through, for which their other ends must have started. Messages
//! of a pair of ranks match in the order of their calls, and have to agree on count and type.

use crate::machine::{self, Entry, Machine, code, devices, setting};
use crate::module::complain;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{c_int, c_void};

const SUCCESS: c_int = 0;
const INVALID_ARGUMENT: c_int = 4;
const INVALID_USAGE: c_int = 5;
/// Calls that a group takes.
const GROUP_LIMIT: usize = 2048;

/// A communicator: its ranks are numbered within a clique.
#[derive(Clone, Copy)]
struct Communicator {
    clique: u64,
    rank: u64,
    device: u64,
}

/// One `ncclSend` or `ncclRecv`.
#[derive(Clone, Copy)]
struct Call {
    sends: bool,
    at: u64,
    count: u64,
    kind: c_int,
    peer: u64,
    communicator: u64,
    stream: u64,
}

/// One end of a message.
#[derive(Clone, Copy)]
struct End {
    call: Call,
    launch: u64,
    device: u64,
}

/// A message whose ends have found each other.
struct Message {
    from: End,
    to: End,
    is_through: bool,
}

/// What communicators have been asked for and have not done.
#[derive(Default)]
pub(crate) struct Exchange {
    communicators: BTreeMap<u64, Communicator>,
    /// Streams and number of calls of every launch.
    launches: BTreeMap<u64, (Vec<u64>, usize)>,
    messages: Vec<Message>,
    /// Ends without the other one, by clique, sender and receiver.
    alone: BTreeMap<(u64, u64, u64), VecDeque<End>>,
    receives: u64,
}

thread_local! {
    /// Depth of nested groups, and what was called in them.
    static GROUP: RefCell<(usize, Vec<Call>)> = const { RefCell::new((0, Vec::new())) };
}

/// Bytes of an `ncclDataType_t`.
fn element(kind: c_int) -> Option<u64> {
    match kind {
        0 | 1 => Some(1),
        6 | 9 => Some(2),
        2 | 3 | 7 => Some(4),
        4 | 5 | 8 => Some(8),
        _ => None,
    }
}

impl Call {
    fn name(&self) -> &'static str {
        if self.sends { "ncclSend" } else { "ncclRecv" }
    }
}

impl End {
    fn describe(&self) -> String {
        let Call {
            count, kind, peer, ..
        } = self.call;
        let (name, device) = (self.call.name(), self.device);
        format!("{name} of {count} elements of type {kind} on device {device}, peer {peer}")
    }
}

impl Machine {
    fn check(&self, call: &Call) -> Result<Communicator, c_int> {
        let communicators = &self.exchange.communicators;
        let own = communicators.get(&call.communicator).copied();
        let own = own.ok_or(INVALID_ARGUMENT)?;
        let ranks = communicators
            .values()
            .filter(|other| other.clique == own.clique);
        let bytes = element(call.kind).map(|size| size * call.count);
        let here = self.device_of(call.stream) == Ok(own.device)
            && bytes.is_some_and(|bytes| self.holds(own.device, call.at, bytes));
        if here && call.peer < ranks.count() as u64 {
            return Ok(own);
        }
        complain(&format!(
            "{}: memory or stream of another device than {}, or no such peer",
            call.name(),
            own.device
        ));
        Err(INVALID_ARGUMENT)
    }

    /// Enqueues the calls of a group.
    fn launch(&mut self, calls: Vec<Call>) -> Result<(), c_int> {
        if calls.len() > GROUP_LIMIT {
            complain("more sends and receives in a group than NCCL takes");
            return Err(INVALID_USAGE);
        }
        let mut by_communicator: BTreeMap<u64, Vec<Call>> = BTreeMap::new();
        for call in calls {
            by_communicator
                .entry(call.communicator)
                .or_default()
                .push(call);
        }
        for calls in by_communicator.into_values() {
            let launch = self.handle();
            let mut streams: Vec<u64> = calls.iter().map(|call| call.stream).collect();
            streams.sort_unstable();
            streams.dedup();
            for &stream in &streams {
                self.push(stream, Entry::Launch(launch))
                    .map_err(|_| INVALID_USAGE)?;
            }
            self.exchange
                .launches
                .insert(launch, (streams, calls.len()));
            for call in calls {
                let own = self.check(&call)?;
                let end = End {
                    call,
                    launch,
                    device: own.device,
                };
                self.exchange.join(own, end)?;
            }
        }
        Ok(())
    }

    fn has_started(&self, launch: u64) -> bool {
        let streams = self.exchange.launches.get(&launch);
        streams.is_some_and(|(streams, _)| streams.iter().all(|&at| self.is_at(at, launch)))
    }

    /// Whether a launch has started, and so have those at the other ends of its messages.
    pub(crate) fn can_run(&self, launch: u64) -> bool {
        let calls = self.exchange.launches.get(&launch).map(|(_, calls)| *calls);
        let ready = self.exchange.messages.iter().map(|message| {
            let ends = [message.from.launch, message.to.launch];
            let own = ends.iter().filter(|&&end| end == launch).count();
            let other = ends
                .iter()
                .all(|&end| end == launch || self.has_started(end));
            if own > 0 && (message.is_through || other) {
                own
            } else {
                0
            }
        });
        let ready: usize = ready.sum();
        self.has_started(launch) && calls == Some(ready)
    }

    /// Passes the messages of a launch, whose entry on `stream` was taken, and ends it.
    pub(crate) fn transfer(&mut self, launch: u64, stream: u64) -> Result<(), i32> {
        let (streams, _) = self
            .exchange
            .launches
            .remove(&launch)
            .ok_or(code::INVALID_HANDLE)?;
        for other in streams.into_iter().filter(|other| *other != stream) {
            self.advance(other);
        }
        let mut messages = std::mem::take(&mut self.exchange.messages);
        let of_launch = messages.iter_mut().filter(|message| {
            let ends = [message.from.launch, message.to.launch];
            ends.contains(&launch) && !message.is_through
        });
        for message in of_launch {
            let (from, to) = (message.from, message.to);
            let bytes = element(from.call.kind).unwrap_or(0) * from.call.count;
            let live = [from, to]
                .iter()
                .all(|end| self.holds(end.device, end.call.at, bytes));
            if !live {
                complain("a message from or to memory that was freed");
                return Err(code::LAUNCH_FAILED);
            }
            // SAFETY: both ranges lie in live allocations, of different devices or disjoint by the caller's promise.
            unsafe {
                std::ptr::copy(
                    from.call.at as *const u8,
                    to.call.at as *mut u8,
                    bytes as usize,
                );
            }
            message.is_through = true;
        }
        // What is through at both ends is forgotten.
        messages.retain(|message| {
            let ends = [message.from.launch, message.to.launch];
            !message.is_through
                || ends
                    .iter()
                    .any(|end| self.exchange.launches.contains_key(end))
        });
        self.exchange.messages = messages;
        Ok(())
    }

    /// Says which calls wait for ever.
    pub(crate) fn unmatched(&self) {
        for end in self.exchange.alone.values().flatten() {
            complain(&format!("{} has no other end", end.describe()));
        }
    }
}

impl Exchange {
    /// Matches an end with the oldest of the other kind.
    fn join(&mut self, own: Communicator, end: End) -> Result<(), c_int> {
        let (from, to) = match end.call.sends {
            true => (own.rank, end.call.peer),
            false => (end.call.peer, own.rank),
        };
        let alone = self.alone.entry((own.clique, from, to)).or_default();
        let fits = |other: &End| other.call.sends != end.call.sends;
        let Some(other) = alone.front().copied().filter(fits) else {
            alone.push_back(end);
            return Ok(());
        };
        alone.pop_front();
        if (other.call.count, other.call.kind) != (end.call.count, end.call.kind) {
            let (one, other) = (end.describe(), other.describe());
            complain(&format!("{one} meets {other}"));
            return Err(INVALID_USAGE);
        }
        let (from, to) = if end.call.sends {
            (end, other)
        } else {
            (other, end)
        };
        self.messages.push(Message {
            from,
            to,
            is_through: false,
        });
        Ok(())
    }

    /// The call as faults are seeded in it: none, if it is left out.
    fn seeded(&mut self, mut call: Call) -> Option<Call> {
        if !call.sends {
            self.receives += 1;
            if self.receives == setting("STAND_IN_DROP_RECEIVE", 0) {
                return None;
            }
            call.count -= u64::from(self.receives == setting("STAND_IN_SHORT_RECEIVE", 0));
        }
        Some(call)
    }
}

fn answer(result: Result<(), c_int>) -> c_int {
    result.err().unwrap_or(SUCCESS)
}

fn call(call: Call) -> c_int {
    let Some(call) = machine::with(|machine| machine.exchange.seeded(call)) else {
        return SUCCESS;
    };
    let alone = GROUP.with_borrow_mut(|(depth, calls)| {
        if *depth > 0 {
            calls.push(call);
        }
        *depth == 0
    });
    match alone {
        true => answer(machine::with(|machine| machine.launch(vec![call]))),
        false => SUCCESS,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitAll(
    communicators: *mut u64,
    count: c_int,
    ordinals: *const c_int,
) -> c_int {
    machine::with(|machine| {
        let clique = machine.handle();
        for rank in 0..count as usize {
            // SAFETY: the caller's arrays of `count` elements.
            let device = unsafe { *ordinals.add(rank) } as u64;
            if device >= devices() {
                return INVALID_ARGUMENT;
            }
            let handle = machine.handle();
            let communicator = Communicator {
                clique,
                rank: rank as u64,
                device,
            };
            machine.exchange.communicators.insert(handle, communicator);
            // SAFETY: as above.
            unsafe { *communicators.add(rank) = handle };
        }
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(communicator: u64) -> c_int {
    let known = machine::with(|machine| machine.exchange.communicators.remove(&communicator));
    known.map_or(INVALID_ARGUMENT, |_| SUCCESS)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupStart() -> c_int {
    GROUP.with_borrow_mut(|(depth, _)| *depth += 1);
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupEnd() -> c_int {
    let calls = GROUP.with_borrow_mut(|(depth, calls)| {
        *depth = depth.checked_sub(1)?;
        Some(match *depth {
            0 => std::mem::take(calls),
            _ => Vec::new(),
        })
    });
    match calls {
        Some(calls) => answer(machine::with(|machine| machine.launch(calls))),
        None => INVALID_USAGE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclSend(
    from: *const c_void,
    count: usize,
    kind: c_int,
    peer: c_int,
    communicator: u64,
    stream: u64,
) -> c_int {
    call(Call {
        sends: true,
        at: from as u64,
        count: count as u64,
        kind,
        peer: peer as u64,
        communicator,
        stream,
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclRecv(
    to: *mut c_void,
    count: usize,
    kind: c_int,
    peer: c_int,
    communicator: u64,
    stream: u64,
) -> c_int {
    call(Call {
        sends: false,
        at: to as u64,
        count: count as u64,
        kind,
        peer: peer as u64,
        communicator,
        stream,
    })
}
