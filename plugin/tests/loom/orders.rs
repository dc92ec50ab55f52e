//! Owns the orders that are tried: pins and changes of one range, of two, and a deadline between
//! them. A thread that nobody wakes shows as a deadlock, which loom reports. Never asserts on time.

use std::time::Duration;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use vm_remap::PageRange;

use crate::pins::{OnPinned, Pinned, Pins, Turnstile};
use crate::sync::set_deadline;

const WAIT: OnPinned = OnPinned::Wait(Duration::ZERO);

/// Stands for a window: what is mapped is a number for each of its two pages.
#[derive(Default)]
struct State {
    pins: Pins,
    mapped: [u32; 2],
}

impl Pinned for State {
    fn pins(&mut self) -> &mut Pins {
        &mut self.pins
    }
}

struct Model {
    state: Mutex<State>,
    turnstile: Turnstile,
}

fn page(number: u64) -> PageRange {
    PageRange::new(number * 4096, 4096).unwrap()
}

fn both() -> PageRange {
    PageRange::new(0, 8192).unwrap()
}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::default()),
            turnstile: Turnstile::default(),
        })
    }

    fn pin(&self, range: PageRange) -> u64 {
        let mut state = self.turnstile.lock_to_pin(&self.state, range);
        state.pins.add(range)
    }

    fn unpin(&self, number: u64) {
        self.turnstile.unpin(&self.state, number);
    }

    /// Changes both pages; `false` where pins were in the way.
    fn change(&self, on_pinned: OnPinned) -> bool {
        self.change_of(both(), on_pinned)
    }

    fn change_of(&self, range: PageRange, on_pinned: OnPinned) -> bool {
        let locked = self
            .turnstile
            .lock_unpinned(&self.state, &[range].into_iter(), on_pinned);
        let Ok(mut state) = locked else {
            return false;
        };
        for number in [0, 1] {
            if range.intersection(page(number)).is_some() {
                state.mapped[usize::try_from(number).unwrap()] += 1;
            }
        }
        true
    }

    fn mapped(&self, number: usize) -> u32 {
        self.state.lock().unwrap().mapped[number]
    }

    /// What a reader does: nothing may change between the two looks.
    fn look_twice(&self, number: u64) {
        let at = usize::try_from(number).unwrap();
        let pin = self.pin(page(number));
        let first = self.mapped(at);
        thread::yield_now();
        assert_eq!(self.mapped(at), first, "changed under a pin");
        self.unpin(pin);
    }
}

/// Runs the threads in every order; of three threads, in those with up to three switches that no
/// thread asked for: all orders of them take minutes.
fn run(threads: usize, act: impl Fn(&Model, usize) + Copy + Send + Sync + 'static) {
    let mut checker = loom::model::Builder::new();
    checker.preemption_bound = (threads > 2).then_some(3);
    checker.check(move || {
        let model = Model::new();
        let others: Vec<_> = (1..threads)
            .map(|number| {
                let model = Arc::clone(&model);
                thread::spawn(move || act(&model, number))
            })
            .collect();
        act(&model, 0);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(model.state.lock().unwrap().pins.len(), 0);
        // Nobody is left over that would hold pins back.
        model.look_twice(0);
    });
}

#[test]
fn change_never_goes_ahead_under_a_pin_and_always_ends() {
    run(2, |model, number| match number {
        0 => assert!(model.change(WAIT)),
        _ => {
            model.look_twice(0);
            model.look_twice(1);
        }
    });
}

#[test]
fn two_readers_and_a_change_end() {
    run(3, |model, number| match number {
        0 => assert!(model.change(WAIT)),
        1 => model.look_twice(0),
        _ => model.look_twice(1),
    });
}

#[test]
fn two_changes_and_a_reader_end() {
    run(3, |model, number| match number {
        0 => model.look_twice(0),
        _ => assert!(model.change(WAIT)),
    });
}

#[test]
fn nested_pins_of_one_thread_do_not_lock_it_out() {
    run(2, |model, number| match number {
        0 => assert!(model.change(WAIT)),
        _ => {
            let outer = model.pin(both());
            model.look_twice(0);
            model.unpin(outer);
        }
    });
}

#[test]
fn readers_of_two_pages_and_a_change_of_each_make_no_circle() {
    let checker = {
        let mut checker = loom::model::Builder::new();
        checker.preemption_bound = Some(2);
        checker
    };
    checker.check(|| {
        let model = Model::new();
        let outer = model.pin(page(0));
        let others = [1, 2, 3].map(|number| {
            let model = Arc::clone(&model);
            thread::spawn(move || match number {
                // The other reader pins the pages in the opposite order.
                1 => {
                    let outer = model.pin(page(1));
                    model.unpin(model.pin(page(0)));
                    model.unpin(outer);
                }
                2 => assert!(model.change_of(page(0), WAIT)),
                _ => assert!(model.change_of(page(1), WAIT)),
            })
        });
        model.unpin(model.pin(page(1)));
        model.unpin(outer);
        for other in others {
            other.join().unwrap();
        }
    });
}

#[test]
fn pin_that_another_thread_lets_go_of_wakes_the_change() {
    loom::model(|| {
        let model = Model::new();
        let pin = model.pin(page(1));
        let other = Arc::clone(&model);
        let changer = thread::spawn(move || assert!(other.change(WAIT)));
        let other = Arc::clone(&model);
        let dropper = thread::spawn(move || other.unpin(pin));
        changer.join().unwrap();
        dropper.join().unwrap();
    });
}

#[test]
fn refused_change_changes_nothing_and_waits_for_nobody() {
    run(2, |model, number| match number {
        0 => {
            model.change(OnPinned::Refuse);
        }
        _ => model.look_twice(0),
    });
}

#[test]
fn change_of_another_page_does_not_meet_the_pin() {
    loom::model(|| {
        let model = Model::new();
        let pin = model.pin(page(0));
        let other = Arc::clone(&model);
        let changer = thread::spawn(move || assert!(other.change_of(page(1), OnPinned::Refuse)));
        model.look_twice(0);
        changer.join().unwrap();
        model.unpin(pin);
    });
}

#[test]
fn deadline_ends_the_wait_and_lets_held_back_pins_go_on() {
    loom::model(|| {
        let model = Model::new();
        let passed = Arc::new(AtomicBool::new(false));
        let pin = model.pin(page(0));
        let other = Arc::clone(&model);
        let changer = {
            let passed = Arc::clone(&passed);
            thread::spawn(move || {
                set_deadline(passed);
                // The pin outlives the wait, so it cannot end any other way.
                assert!(!other.change(WAIT));
            })
        };
        let reader = {
            let other = Arc::clone(&model);
            thread::spawn(move || other.look_twice(1))
        };
        {
            // The clock: it sets the deadline off and wakes, between any two steps of the others.
            let _state = model.state.lock().unwrap();
            passed.store(true, Ordering::SeqCst);
            model.turnstile.wake();
        }
        changer.join().unwrap();
        reader.join().unwrap();
        model.unpin(pin);
        assert_eq!(model.mapped(0), 0);
    });
}
