//! Makes a case that differs small: state is set to zero, piece by piece, as long as the difference stays.
use iced_x86::Instruction;

use crate::{
    case::{Case, Image, Outcome, end},
    compare::difference,
    machine::Machine,
    native::Native,
};

/// Both outcomes of one case.
pub fn both(native: &mut Native, machine: &mut Machine, image: &Image, case: &Case) -> std::io::Result<[Outcome; 2]> {
    let mut ours = Outcome::default();
    native.begin(image, std::slice::from_ref(case))?;
    machine.run(image, std::slice::from_ref(case), std::slice::from_mut(&mut ours));
    let theirs = native.finish()?[0].clone();
    Ok([theirs, ours])
}

/// The smallest case and image that were found to differ as `case` does.
pub fn shrink(
    native: &mut Native,
    machine: &mut Machine,
    insn: &Instruction,
    image: &Image,
    case: &Case,
) -> std::io::Result<(Case, Image)> {
    let (mut best, mut data) = (case.clone(), image.clone());
    let mut differs = |case: &Case, image: &Image| -> std::io::Result<bool> {
        let [theirs, ours] = both(native, machine, image, case)?;
        // Some instructions do not come back from where nobody sends them: that would be another difference.
        Ok(theirs.end != end::DIED && difference(case, insn, image, &theirs, &ours).is_some())
    };
    for _ in 0..2 {
        let mut image = data.clone();
        image.0[..crate::layout::WRITABLE as usize].fill(0);
        if differs(&best, &image)? {
            data = image;
        } else {
            for line in (0..crate::layout::WRITABLE as usize).step_by(64) {
                let mut image = data.clone();
                image.0[line..line + 64].fill(0);
                if image.0 != data.0 && differs(&best, &image)? {
                    data = image;
                }
            }
        }
        for candidate in simpler(&best) {
            let mut next = best.clone();
            candidate(&mut next);
            if (next.before != best.before || next.patch_len != best.patch_len) && differs(&next, &data)? {
                best = next;
            }
        }
    }
    Ok((best, data))
}

type Change = Box<dyn Fn(&mut Case)>;

fn simpler(case: &Case) -> Vec<Change> {
    let mut all: Vec<Change> = Vec::new();
    all.push(Box::new(|case| case.patch_len = 0));
    for i in 0..16 {
        all.push(Box::new(move |case| case.before.gpr[i] = 0));
    }
    for bit in [0, 2, 4, 6, 7, 10, 11, 14, 18, 21] {
        all.push(Box::new(move |case| case.before.flags &= !(1 << bit)));
    }
    for at in (32..160).step_by(16).chain((160..416).step_by(16)).chain((576..832).step_by(16)) {
        all.push(Box::new(move |case| case.before.xsave[at..at + 16].fill(0)));
        for byte in 0..16 {
            all.push(Box::new(move |case| case.before.xsave[at + byte] = 0));
        }
    }
    for (at, plain) in [(0, 0x37fu32), (2, 0), (4, 0), (24, 0x1f80)] {
        let len = if at == 24 { 4 } else { 2 };
        all.push(Box::new(move |case| {
            case.before.xsave[at..at + len].copy_from_slice(&plain.to_le_bytes()[..len]);
        }));
    }
    for i in 0..16 {
        let value = case.before.gpr[i];
        for keep in [0xffff_ffffu64, 0xffff, 0xff] {
            all.push(Box::new(move |case| case.before.gpr[i] = value & keep));
        }
    }
    for i in 0..2 {
        all.push(Box::new(move |case| case.before.bases[i] = 0));
        all.push(Box::new(move |case| case.before.selectors[4 + i] = 0));
    }
    all
}
