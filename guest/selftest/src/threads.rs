//! Threads on every processor share memory by atomic operations, sleep and wake each other.
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use crate::{Check, ensure};

const ROUNDS: u64 = 20_000;

/// See the module.
pub fn check() -> Check {
    let cpus = thread::available_parallelism().map_err(|e| e.to_string())?.get();
    for cpu in 0..cpus {
        pin(cpu)?;
    }
    let counter = Arc::new(AtomicU64::new(0));
    let guarded = Arc::new(Mutex::new(0u64));
    let threads: Vec<_> = (0..cpus.max(2))
        .map(|i| {
            let (counter, guarded) = (counter.clone(), guarded.clone());
            thread::spawn(move || {
                pin(i % cpus)?;
                for _ in 0..ROUNDS {
                    counter.fetch_add(1, Ordering::Relaxed);
                    *guarded.lock().map_err(|e| e.to_string())? += 1;
                }
                Ok::<(), String>(())
            })
        })
        .collect();
    let count = threads.len() as u64;
    for thread in threads {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    let (atomic, locked) = (counter.load(Ordering::SeqCst), *guarded.lock().map_err(|e| e.to_string())?);
    ensure!(atomic == count * ROUNDS, "atomic additions were lost: {atomic}");
    ensure!(locked == count * ROUNDS, "additions under a lock were lost: {locked}");
    ping_pong()
}

fn pin(cpu: usize) -> Check {
    // SAFETY: a zeroed set is valid, and the call reads only it.
    let (result, on) = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        (libc::sched_setaffinity(0, size_of_val(&set), &set), libc::sched_getcpu())
    };
    ensure!(result == 0 && on == cpu as i32, "could not run on processor {cpu} (on {on})");
    Ok(())
}

fn ping_pong() -> Check {
    let (to, from_main) = mpsc::channel::<u32>();
    let (back, answers) = mpsc::channel::<u32>();
    let echo = thread::spawn(move || from_main.iter().try_for_each(|n| back.send(n + 1)));
    for n in 0..200 {
        to.send(n).map_err(|e| e.to_string())?;
        let answer = answers.recv().map_err(|e| e.to_string())?;
        ensure!(answer == n + 1, "a message was changed on its way: {n} became {answer}");
    }
    drop(to);
    echo.join().map_err(|_| "the echo thread panicked")?.map_err(|e| e.to_string())
}
