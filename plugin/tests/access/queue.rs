//! Owns the tests of a virtio queue whose buffers lie in a window: the rings as the driver writes
//! them, the device's side with virtio-queue's own reader and writer. Never has a real guest.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use virtio_queue::desc::{RawDescriptor, split};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vm_remap::Protection::ReadWrite;
use vm_remap::{Indirect, OnPinned, Source};

use crate::support::*;

/// `VRING_DESC_F_WRITE`: the device writes.
const WRITES: u16 = 2;

fn descriptor(address: GuestAddress, len: u32, flags: u16) -> RawDescriptor {
    split::Descriptor::new(address.0, len, flags, 0).into()
}

/// A chain over two readable and two writable buffers, from ordinary memory into the window:
/// 8 bytes across the edge, 8 in the window's second page, 8 in its third and 16 in its fourth.
fn chain(memory: &Memory) -> DescriptorChain<&Memory> {
    let queue = MockSplitQueue::new(memory, 16);
    let buffers = [
        descriptor(GuestAddress(RAM - 4), 8, 0),
        descriptor(at(PAGE + 1), 8, 0),
        descriptor(at(2 * PAGE - 4), 8, WRITES),
        descriptor(at(3 * PAGE), 16, WRITES),
    ];
    queue.build_desc_chain(&buffers).unwrap();
    let mut queue: Queue = queue.create_queue().unwrap();
    queue.pop_descriptor_chain(memory).unwrap()
}

#[test]
fn device_reads_and_writes_buffers_inside_a_blob() {
    for (indirect, fd) in [
        (Indirect::Refuse, sealed(4, 1)),
        (COPY, sealed(4, 1)),
        (COPY, memfd(4, 1)),
    ] {
        let (memory, window) = memory(OnPinned::Refuse, indirect);
        map(&window, 0, 4, &fd);
        memory.write_slice(&[9; 4], GuestAddress(RAM - 4)).unwrap();
        let mut reader = chain(&memory).reader(&memory).unwrap();
        assert_eq!(reader.available_bytes(), 16);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [9, 9, 9, 9, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);

        let mut writer = chain(&memory).writer(&memory).unwrap();
        let words: Vec<u8> = (100..124).collect();
        writer.write_all(&words[..10]).unwrap();
        assert_eq!(window.unmap(pages(3, 1)).unwrap_err().errno(), 16);
        writer.write_all(&words[10..]).unwrap();
        drop(writer);
        drop(reader);
        assert_eq!(window.counters().pins, 0);
        let pin = window.pin(pages(0, 4)).unwrap();
        let mut found = [0; 24];
        pin.read(2 * PAGE - 4, &mut found[..8]).unwrap();
        pin.read(3 * PAGE, &mut found[8..]).unwrap();
        assert_eq!(found, words[..]);
        assert_eq!(region(&memory).lost_writes(), 0);
    }
}

#[test]
fn chain_over_a_hole_is_refused_and_leaves_no_pin() {
    let (memory, window) = memory(OnPinned::Refuse, COPY);
    map(&window, 0, 4, &sealed(4, 1));
    window.unmap(pages(3, 1)).unwrap();
    assert!(chain(&memory).writer(&memory).is_err());
    assert!(
        chain(&memory).reader(&memory).is_ok(),
        "the others are there"
    );
    assert_eq!(window.counters().pins, 0);
}

#[test]
fn chain_over_a_truncated_file_is_refused() {
    let (memory, window) = memory(OnPinned::Refuse, COPY);
    let fd = memfd(4, 1);
    map(&window, 0, 4, &fd);
    truncate(&fd, 3);
    assert!(chain(&memory).writer(&memory).is_err());
    let mut bytes = Vec::new();
    let mut reader = chain(&memory).reader(&memory).unwrap();
    truncate(&fd, 0);
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 16, "a copy that was made is whole");
}

#[test]
fn unmap_waits_until_the_device_is_done() {
    let (memory, window) = memory(OnPinned::Wait(Duration::from_secs(60)), COPY);
    map(&window, 0, 4, &sealed(4, 1));
    let mut writer = chain(&memory).writer(&memory).unwrap();
    thread::scope(|scope| {
        let unmap = scope.spawn(|| window.unmap(pages(0, 4)));
        thread::sleep(Duration::from_millis(20));
        writer.write_all(&[1; 23]).unwrap();
        drop(writer);
        unmap.join().unwrap().unwrap();
    });
    assert!(chain_in_a_hole(&memory).is_err());
}

fn chain_in_a_hole(memory: &Memory) -> Result<(), virtio_queue::Error> {
    chain(memory).writer(memory).map(drop)
}

#[test]
fn rings_work_in_stable_memory_of_a_window() {
    let (memory, window) = memory(OnPinned::Refuse, Indirect::Refuse);
    window
        .map(pages(8, 4), &Source::anonymous(), ReadWrite)
        .unwrap();
    map(&window, 0, 4, &sealed(4, 1));
    let driver = MockSplitQueue::create(&memory, at(8 * PAGE), 16);
    let buffers = [descriptor(at(0), 8, 0)];
    driver.add_desc_chains(&buffers, 0).unwrap();
    let mut queue: Queue = driver.create_queue().unwrap();
    assert!(queue.is_valid(&memory));
    let found = queue.pop_descriptor_chain(&memory).unwrap();
    let head = found.head_index();
    let mut bytes = [0; 8];
    found
        .reader(&memory)
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    assert_eq!(bytes, [1; 8]);
    queue.add_used(&memory, head, 8).unwrap();
    assert_eq!(u16::from_le(driver.used().idx().load()), 1);
}
