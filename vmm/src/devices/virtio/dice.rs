//! Random numbers for tests that throw a device what comes, and as many rounds of it as somebody wants (`tests/suites/random`): from
//! a seed, or from the bytes of a fuzzer that looks what comes of them (`tests/fuzz`).

/// Numbers, each below a bound.
pub struct Dice(Source);

enum Source {
    /// A small generator (xorshift64), so that a failure can be repeated from its seed; rounds that are left.
    Seed(u64, u64),
    /// Bytes that are left.
    #[cfg(feature = "fuzzing")]
    Bytes(Vec<u8>),
}

impl Dice {
    /// From the seed `HUSK_SEED`, or another one each time, which is printed; and for so many rounds: `HUSK_ROUNDS`, or `rounds`.
    #[cfg(test)]
    pub fn new(rounds: u64) -> Self {
        let number = |name| {
            std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: no number")))
        };
        let seed = number("HUSK_SEED").unwrap_or_else(|| {
            let mut bytes = [0; 8];
            rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
            u64::from_le_bytes(bytes)
        });
        let rounds = number("HUSK_ROUNDS").unwrap_or(rounds);
        println!("HUSK_SEED={seed} HUSK_ROUNDS={rounds}");
        // Zero would stay zero.
        Self(Source::Seed(seed.max(1), rounds))
    }

    /// From these bytes, for as many rounds as they last. What is asked for beyond them is 0.
    #[cfg(feature = "fuzzing")]
    pub fn of(bytes: &[u8]) -> Self {
        // The end of a vector is its cheap end.
        Self(Source::Bytes(bytes.iter().rev().copied().collect()))
    }

    /// Whether there is another round.
    pub fn goes_on(&mut self) -> bool {
        match &mut self.0 {
            Source::Seed(_, left) => left.checked_sub(1).map(|less| *left = less).is_some(),
            #[cfg(feature = "fuzzing")]
            Source::Bytes(left) => !left.is_empty(),
        }
    }

    /// Below `sides`.
    pub fn roll(&mut self, sides: u32) -> u32 {
        let number = match &mut self.0 {
            Source::Seed(state, _) => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                *state
            }
            // As few as there have to be: each has its part in what happens.
            #[cfg(feature = "fuzzing")]
            Source::Bytes(left) => {
                let count = match sides {
                    0..=0x100 => 1,
                    0x101..=0x1_0000 => 2,
                    _ => 4,
                };
                (0..count).fold(0, |number, _| number << 8 | u64::from(left.pop().unwrap_or(0)))
            }
        };
        u32::try_from(number % u64::from(sides)).unwrap()
    }

    /// True once in `odds` times, and never where there are no more bytes.
    pub fn rarely(&mut self, odds: u32) -> bool {
        self.roll(odds) == odds - 1
    }

    /// Below 2^`bits`, small numbers as often as large ones.
    pub fn size(&mut self, bits: u32) -> u32 {
        let bits = self.roll(bits);
        self.roll(1 << bits)
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        u8::try_from(self.roll(256)).unwrap()
    }

    /// Any number of 16 bits.
    pub fn short(&mut self) -> u16 {
        u16::try_from(self.roll(0x1_0000)).unwrap()
    }
}
