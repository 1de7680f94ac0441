//! Random numbers for tests that throw a device what comes, and as many rounds of it as somebody wants (`tests/suites/random`).

/// A small generator (xorshift64), so that a failure can be repeated from its seed.
pub struct Dice(u64);

impl Dice {
    /// From the seed `HUSK_SEED`, or another one each time, which is printed; and how many rounds: `HUSK_ROUNDS`, or so many.
    pub fn new(rounds: u64) -> (Self, u64) {
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
        (Self(seed.max(1)), rounds)
    }

    /// Below `sides`.
    pub fn roll(&mut self, sides: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 % u64::from(sides)).unwrap()
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
