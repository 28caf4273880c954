//! The devices: memory, streams, events, and the order in which enqueued work runs.

use crate::nccl::Exchange;
use moeplan_kernels::host::Allocation;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Results of driver calls.
pub(crate) mod code {
    pub(crate) const OK: i32 = 0;
    pub(crate) const INVALID_VALUE: i32 = 1;
    pub(crate) const OUT_OF_MEMORY: i32 = 2;
    pub(crate) const INVALID_DEVICE: i32 = 101;
    pub(crate) const INVALID_IMAGE: i32 = 200;
    pub(crate) const INVALID_CONTEXT: i32 = 201;
    pub(crate) const INVALID_HANDLE: i32 = 400;
    pub(crate) const NOT_FOUND: i32 = 500;
    pub(crate) const NOT_READY: i32 = 600;
    pub(crate) const LAUNCH_FAILED: i32 = 719;
}

/// Work on a stream. It returns what went wrong, which from then on is the answer to every call.
type Work = Box<dyn FnOnce(&[Allocation]) -> Result<(), i32> + Send>;

pub(crate) enum Entry {
    Work(Work),
    /// Release of memory.
    Free(u64),
    /// The event's n-th record.
    Record {
        event: u64,
        record: u64,
    },
    /// Waits for the event's n-th record.
    Wait {
        event: u64,
        record: u64,
    },
    /// Sends and receives of one communicator, which are at the head of all their streams at once.
    Launch(u64),
}

struct Queued {
    /// Place in the order in which the host issued it.
    issued: u64,
    entry: Entry,
}

/// A stream and the device it is of.
struct Stream {
    device: u64,
    entries: VecDeque<Queued>,
}

#[derive(Default)]
struct Event {
    device: u64,
    recorded: u64,
    completed: u64,
    at: Option<Instant>,
    timed: bool,
}

struct Block {
    /// 16-byte units, so that addresses are aligned.
    storage: Box<[u128]>,
    bytes: u64,
    device: u64,
}

/// Order in which heads of streams run.
#[derive(Clone, Copy)]
enum Order {
    AsIssued,
    NewestStream,
    OldestStream,
    Random(u64),
    /// What was issued last: consumers run ahead of everything they do not wait for.
    LatestIssued,
}

/// The state of all devices.
pub(crate) struct Machine {
    order: Order,
    drop_wait: Option<u64>,
    waits: u64,
    /// Bytes of each device, and how many of them are allocated.
    capacity: u64,
    used: Vec<u64>,
    blocks: BTreeMap<u64, Block>,
    pinned: BTreeMap<u64, usize>,
    streams: BTreeMap<u64, Stream>,
    pub(crate) exchange: Exchange,
    events: BTreeMap<u64, Event>,
    next: u64,
    issued: u64,
    /// The first failure of enqueued work.
    sticky: i32,
}

static MACHINE: Mutex<Option<Machine>> = Mutex::new(None);

/// A number from the environment.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// Number of devices.
pub(crate) fn devices() -> u64 {
    setting("STAND_IN_DEVICES", 1)
}

/// Runs `f` on the devices.
pub(crate) fn with<T>(f: impl FnOnce(&mut Machine) -> T) -> T {
    let mut machine: MutexGuard<'_, Option<Machine>> =
        MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    f(machine.get_or_insert_with(Machine::new))
}

impl Machine {
    fn new() -> Machine {
        Machine {
            order: match setting("STAND_IN_ORDER", 0) {
                0 => Order::AsIssued,
                1 => Order::NewestStream,
                2 => Order::OldestStream,
                3 => Order::LatestIssued,
                seed => Order::Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            },
            drop_wait: std::env::var("STAND_IN_DROP_WAIT")
                .ok()
                .and_then(|n| n.parse().ok()),
            waits: 0,
            capacity: setting("STAND_IN_MEMORY", 4 << 30),
            used: vec![0; devices() as usize],
            blocks: BTreeMap::new(),
            pinned: BTreeMap::new(),
            // The default streams have the numbers of their devices, which are below all handles.
            streams: (0..devices())
                .map(|device| (device, Stream::new(device)))
                .collect(),
            exchange: Exchange::default(),
            events: BTreeMap::new(),
            next: 0x1000,
            issued: 0,
            sticky: code::OK,
        }
    }

    /// A new handle: never null.
    pub(crate) fn handle(&mut self) -> u64 {
        self.next += 16;
        self.next
    }

    // ------------------------------------------------------------------------------------- memory

    /// Allocates, filled with 0xff: uninitialised floats read as NaN.
    pub(crate) fn allocate(&mut self, device: u64, bytes: u64) -> Result<u64, i32> {
        if bytes == 0 {
            return Err(code::INVALID_VALUE);
        }
        let used = &mut self.used[device as usize];
        if bytes > self.capacity - *used {
            return Err(code::OUT_OF_MEMORY);
        }
        let storage = vec![u128::MAX; (bytes as usize).div_ceil(16)].into_boxed_slice();
        let address = storage.as_ptr() as u64;
        *used += bytes;
        let block = Block {
            storage,
            bytes,
            device,
        };
        self.blocks.insert(address, block);
        Ok(address)
    }

    /// Frees at once.
    pub(crate) fn free(&mut self, address: u64) -> Result<(), i32> {
        let block = self.blocks.remove(&address).ok_or(code::INVALID_VALUE)?;
        debug_assert!(block.storage.len() * 16 >= block.bytes as usize);
        self.used[block.device as usize] -= block.bytes;
        Ok(())
    }

    /// Whether `bytes` from `address` lie in one live allocation of `device`.
    pub(crate) fn holds(&self, device: u64, address: u64, bytes: u64) -> bool {
        let before = self.blocks.range(..=address).next_back();
        before.is_some_and(|(first, block)| {
            block.device == device && address + bytes <= first + block.bytes
        })
    }

    /// What is allocated on a device.
    pub(crate) fn allocations(&self, device: u64) -> Vec<Allocation> {
        let blocks = self.blocks.iter();
        blocks
            .filter(|(_, block)| block.device == device)
            .map(|(&first, block)| Allocation {
                first,
                bytes: block.bytes,
            })
            .collect()
    }

    /// Free and total bytes of a device.
    pub(crate) fn memory(&self, device: u64) -> (u64, u64) {
        (self.capacity - self.used[device as usize], self.capacity)
    }

    /// Page-locked host memory.
    pub(crate) fn pin(&mut self, bytes: usize) -> u64 {
        let storage = vec![0u128; bytes.div_ceil(16).max(1)].into_boxed_slice();
        let units = storage.len();
        let address = Box::into_raw(storage).cast::<u128>() as u64;
        self.pinned.insert(address, units);
        address
    }

    /// Releases it.
    pub(crate) fn unpin(&mut self, address: u64) -> Result<(), i32> {
        let units = self.pinned.remove(&address).ok_or(code::INVALID_VALUE)?;
        let storage = std::ptr::slice_from_raw_parts_mut(address as *mut u128, units);
        // SAFETY: from `pin`, where this box came from, and handed back once.
        drop(unsafe { Box::from_raw(storage) });
        Ok(())
    }

    /// Whether host memory is page-locked: only then are copies asynchronous.
    pub(crate) fn is_pinned(&self, address: u64) -> bool {
        let before = self.pinned.range(..=address).next_back();
        before.is_some_and(|(first, units)| address < first + 16 * *units as u64)
    }

    // ------------------------------------------------------------------------------------- streams

    /// Creates a stream.
    pub(crate) fn stream(&mut self, device: u64) -> u64 {
        let stream = self.handle();
        self.streams.insert(stream, Stream::new(device));
        stream
    }

    /// The device that a stream is of.
    pub(crate) fn device_of(&self, stream: u64) -> Result<u64, i32> {
        let stream = self.streams.get(&stream).ok_or(code::INVALID_HANDLE)?;
        Ok(stream.device)
    }

    /// Whether the next thing on a stream is that launch.
    pub(crate) fn is_at(&self, stream: u64, launch: u64) -> bool {
        let head = self
            .streams
            .get(&stream)
            .and_then(|stream| stream.entries.front());
        head.is_some_and(|head| matches!(head.entry, Entry::Launch(there) if there == launch))
    }

    /// Takes the next thing off a stream.
    pub(crate) fn advance(&mut self, stream: u64) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.entries.pop_front();
        }
    }

    /// Destroys a stream once its work is done.
    pub(crate) fn destroy_stream(&mut self, stream: u64) -> Result<(), i32> {
        self.synchronize(stream)?;
        self.streams
            .remove(&stream)
            .map(|_| ())
            .ok_or(code::INVALID_HANDLE)
    }

    /// Enqueues something.
    pub(crate) fn push(&mut self, stream: u64, entry: Entry) -> Result<(), i32> {
        if self.sticky != code::OK {
            return Err(self.sticky);
        }
        self.issued += 1;
        let issued = self.issued;
        let queue = self.streams.get_mut(&stream).ok_or(code::INVALID_HANDLE)?;
        queue.entries.push_back(Queued { issued, entry });
        Ok(())
    }

    /// Enqueues work.
    pub(crate) fn enqueue(&mut self, stream: u64, work: Work) -> Result<(), i32> {
        self.push(stream, Entry::Work(work))
    }

    /// Enqueues the release of memory.
    pub(crate) fn enqueue_free(&mut self, stream: u64, address: u64) -> Result<(), i32> {
        self.push(stream, Entry::Free(address))
    }

    /// Creates an event.
    pub(crate) fn event(&mut self, device: u64, timed: bool) -> u64 {
        let event = self.handle();
        self.events.insert(
            event,
            Event {
                device,
                timed,
                ..Event::default()
            },
        );
        event
    }

    /// Destroys an event. Waits for its records that are enqueued stay valid, as the driver has it.
    pub(crate) fn destroy_event(&mut self, event: u64) -> Result<(), i32> {
        let known = self.events.get(&event).ok_or(code::INVALID_HANDLE)?;
        if known.completed == known.recorded {
            self.events.remove(&event);
        }
        Ok(())
    }

    /// Enqueues the event's next record.
    pub(crate) fn record(&mut self, stream: u64, event: u64) -> Result<(), i32> {
        let device = self.device_of(stream)?;
        let known = self.events.get_mut(&event).ok_or(code::INVALID_HANDLE)?;
        if known.device != device {
            return Err(code::INVALID_HANDLE);
        }
        known.recorded += 1;
        let record = known.recorded;
        self.push(stream, Entry::Record { event, record })
    }

    /// Enqueues a wait for the event's latest record.
    pub(crate) fn wait(&mut self, stream: u64, event: u64) -> Result<(), i32> {
        let record = self
            .events
            .get(&event)
            .ok_or(code::INVALID_HANDLE)?
            .recorded;
        self.waits += 1;
        if self.drop_wait == Some(self.waits) {
            return Ok(());
        }
        self.push(stream, Entry::Wait { event, record })
    }

    /// How many waits were asked for so far.
    pub(crate) fn waits(&self) -> u64 {
        self.waits
    }

    /// Whether the event's latest record is reached.
    pub(crate) fn query(&self, event: u64) -> Result<(), i32> {
        let event = self.events.get(&event).ok_or(code::INVALID_HANDLE)?;
        match event.completed < event.recorded {
            true => Err(code::NOT_READY),
            false => Ok(()),
        }
    }

    /// Milliseconds between two events.
    pub(crate) fn elapsed(&self, from: u64, to: u64) -> Result<f32, i32> {
        self.query(from)?;
        self.query(to)?;
        let moment = |event: u64| {
            let event = self.events.get(&event).ok_or(code::INVALID_HANDLE)?;
            event.at.filter(|_| event.timed).ok_or(code::INVALID_HANDLE)
        };
        if self.events[&from].device != self.events[&to].device {
            return Err(code::INVALID_HANDLE);
        }
        let (from, to) = (moment(from)?, moment(to)?);
        let sign = if to >= from { 1.0 } else { -1.0 };
        let span = if to >= from { to - from } else { from - to };
        Ok(sign * span.as_secs_f32() * 1e3)
    }

    // ------------------------------------------------------------------------------------- order

    /// Runs until the stream is empty.
    pub(crate) fn synchronize(&mut self, stream: u64) -> Result<(), i32> {
        if !self.streams.contains_key(&stream) {
            return Err(code::INVALID_HANDLE);
        }
        self.run_until(|machine| machine.streams[&stream].entries.is_empty())
    }

    /// Runs until the event's latest record is reached.
    pub(crate) fn synchronize_event(&mut self, event: u64) -> Result<(), i32> {
        if !self.events.contains_key(&event) {
            return Err(code::INVALID_HANDLE);
        }
        self.run_until(|machine| machine.query(event).is_ok())
    }

    /// Runs everything of a device.
    pub(crate) fn synchronize_device(&mut self, device: u64) -> Result<(), i32> {
        let done = |stream: &Stream| stream.device != device || stream.entries.is_empty();
        self.run_until(|machine| machine.streams.values().all(done))
    }

    fn run_until(&mut self, done: impl Fn(&Machine) -> bool) -> Result<(), i32> {
        while self.sticky == code::OK && !done(self) {
            let Some(stream) = self.choose() else {
                // Waits are for records issued before them, so messages hold up everything: NCCL would wait for ever.
                self.unmatched();
                self.sticky = code::LAUNCH_FAILED;
                break;
            };
            if let Err(why) = self.step(stream) {
                self.sticky = why;
            }
        }
        match self.sticky {
            code::OK => Ok(()),
            why => Err(why),
        }
    }

    /// A stream whose head can run.
    fn choose(&mut self) -> Option<u64> {
        let runnable = |entry: &Entry| match entry {
            Entry::Wait { event, record } => self
                .events
                .get(event)
                .is_none_or(|event| event.completed >= *record),
            Entry::Launch(launch) => self.can_run(*launch),
            Entry::Work(_) | Entry::Free(_) | Entry::Record { .. } => true,
        };
        let heads = self.streams.iter().filter_map(|(&stream, queue)| {
            let head = queue.entries.front()?;
            runnable(&head.entry).then_some((stream, head.issued))
        });
        let heads: Vec<(u64, u64)> = heads.collect();
        let chosen = match &mut self.order {
            Order::AsIssued => heads.iter().min_by_key(|(_, issued)| *issued),
            Order::NewestStream => heads.last(),
            Order::OldestStream => heads.first(),
            Order::LatestIssued => heads.iter().max_by_key(|(_, issued)| *issued),
            Order::Random(state) => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                heads.get((*state % heads.len().max(1) as u64) as usize)
            }
        };
        chosen.map(|(stream, _)| *stream)
    }

    fn step(&mut self, stream: u64) -> Result<(), i32> {
        let queue = self.streams.get_mut(&stream).ok_or(code::INVALID_HANDLE)?;
        let device = queue.device;
        let Some(head) = queue.entries.pop_front() else {
            return Ok(());
        };
        match head.entry {
            Entry::Work(work) => {
                let allocations = self.allocations(device);
                work(&allocations)
            }
            Entry::Free(address) => self.free(address),
            Entry::Record { event, record } => {
                if let Some(event) = self.events.get_mut(&event) {
                    event.completed = record;
                    event.at = Some(Instant::now());
                }
                Ok(())
            }
            Entry::Wait { .. } => Ok(()),
            Entry::Launch(launch) => self.transfer(launch, stream),
        }
    }

    /// Bytes allocated now on all devices.
    pub(crate) fn usage(&self) -> u64 {
        self.used.iter().sum()
    }
}

impl Stream {
    fn new(device: u64) -> Stream {
        Stream {
            device,
            entries: VecDeque::new(),
        }
    }
}
