//! The vector instructions, by what they do; each in the encodings of both instruction sets.

use iced_x86::{Code, OpKind};

use super::{Asm, EVEN, Gpr, Isa, Mem, ORDERED, Operand, Src, V, View};

/// A table of codes: one row an operation, one column an encoding.
macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$row_doc:meta])* $row:ident $avx2:ident $avx512:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$row_doc])* $row,)*
        }

        impl $name {
            fn code(self, isa: Isa) -> Code {
                match (self, isa) {
                    $(($name::$row, Isa::Avx2 | Isa::Avx512Vl) => Code::$avx2,
                    ($name::$row, Isa::Avx512) => Code::$avx512,)*
                }
            }
        }
    };
}

codes! {
    /// `dst = a op b`, lane by lane; packs and dot products as the instructions of that name.
    Binary {
        /// Pairs of i16 products added to i32.
        Maddwd VEX_Vpmaddwd_ymm_ymm_ymmm256 EVEX_Vpmaddwd_zmm_k1z_zmm_zmmm512,
        /// Pairs of u8 (a) times i8 (b) products added to i16 with saturation.
        Maddubs VEX_Vpmaddubsw_ymm_ymm_ymmm256 EVEX_Vpmaddubsw_zmm_k1z_zmm_zmmm512,
        /// Signed products of the even i32 lanes, 64 bits each.
        MulEven VEX_Vpmuldq_ymm_ymm_ymmm256 EVEX_Vpmuldq_zmm_k1z_zmm_zmmm512b64,
        /// High halves of u16 products.
        MulHighU16 VEX_Vpmulhuw_ymm_ymm_ymmm256 EVEX_Vpmulhuw_zmm_k1z_zmm_zmmm512,
        MulI16 VEX_Vpmullw_ymm_ymm_ymmm256 EVEX_Vpmullw_zmm_k1z_zmm_zmmm512,
        MulI32 VEX_Vpmulld_ymm_ymm_ymmm256 EVEX_Vpmulld_zmm_k1z_zmm_zmmm512b32,
        AddI8 VEX_Vpaddb_ymm_ymm_ymmm256 EVEX_Vpaddb_zmm_k1z_zmm_zmmm512,
        AddI16 VEX_Vpaddw_ymm_ymm_ymmm256 EVEX_Vpaddw_zmm_k1z_zmm_zmmm512,
        AddI32 VEX_Vpaddd_ymm_ymm_ymmm256 EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32,
        SubI8 VEX_Vpsubb_ymm_ymm_ymmm256 EVEX_Vpsubb_zmm_k1z_zmm_zmmm512,
        SubI16 VEX_Vpsubw_ymm_ymm_ymmm256 EVEX_Vpsubw_zmm_k1z_zmm_zmmm512,
        SubI32 VEX_Vpsubd_ymm_ymm_ymmm256 EVEX_Vpsubd_zmm_k1z_zmm_zmmm512b32,
        MaxU8 VEX_Vpmaxub_ymm_ymm_ymmm256 EVEX_Vpmaxub_zmm_k1z_zmm_zmmm512,
        MaxI8 VEX_Vpmaxsb_ymm_ymm_ymmm256 EVEX_Vpmaxsb_zmm_k1z_zmm_zmmm512,
        MinU8 VEX_Vpminub_ymm_ymm_ymmm256 EVEX_Vpminub_zmm_k1z_zmm_zmmm512,
        MinI8 VEX_Vpminsb_ymm_ymm_ymmm256 EVEX_Vpminsb_zmm_k1z_zmm_zmmm512,
        MaxI16 VEX_Vpmaxsw_ymm_ymm_ymmm256 EVEX_Vpmaxsw_zmm_k1z_zmm_zmmm512,
        MaxI32 VEX_Vpmaxsd_ymm_ymm_ymmm256 EVEX_Vpmaxsd_zmm_k1z_zmm_zmmm512b32,
        MinI32 VEX_Vpminsd_ymm_ymm_ymmm256 EVEX_Vpminsd_zmm_k1z_zmm_zmmm512b32,
        /// Signed with saturation, in each 128 bits the lanes of `a`, then those of `b`: i32 to i16, i16 to i8, i16 to u8.
        PackI32 VEX_Vpackssdw_ymm_ymm_ymmm256 EVEX_Vpackssdw_zmm_k1z_zmm_zmmm512b32,
        PackI16 VEX_Vpacksswb_ymm_ymm_ymmm256 EVEX_Vpacksswb_zmm_k1z_zmm_zmmm512,
        PackI16ToU8 VEX_Vpackuswb_ymm_ymm_ymmm256 EVEX_Vpackuswb_zmm_k1z_zmm_zmmm512,
        /// In each 128 bits the elements of their lower, or upper, halves in turn, `a`'s first.
        UnpackLowI8 VEX_Vpunpcklbw_ymm_ymm_ymmm256 EVEX_Vpunpcklbw_zmm_k1z_zmm_zmmm512,
        UnpackHighI8 VEX_Vpunpckhbw_ymm_ymm_ymmm256 EVEX_Vpunpckhbw_zmm_k1z_zmm_zmmm512,
        UnpackLowI16 VEX_Vpunpcklwd_ymm_ymm_ymmm256 EVEX_Vpunpcklwd_zmm_k1z_zmm_zmmm512,
        UnpackHighI16 VEX_Vpunpckhwd_ymm_ymm_ymmm256 EVEX_Vpunpckhwd_zmm_k1z_zmm_zmmm512,
        And VEX_Vpand_ymm_ymm_ymmm256 EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32,
        DivF32 VEX_Vdivps_ymm_ymm_ymmm256 EVEX_Vdivps_zmm_k1z_zmm_zmmm512b32_er,
        /// `a` where it is greater than `b`, else `b`; the same of `MinF32` and less.
        MaxF32 VEX_Vmaxps_ymm_ymm_ymmm256 EVEX_Vmaxps_zmm_k1z_zmm_zmmm512b32_sae,
        MinF32 VEX_Vminps_ymm_ymm_ymmm256 EVEX_Vminps_zmm_k1z_zmm_zmmm512b32_sae,
        /// Bytes of `a`, in each 128 bits those that `b` names; 0 for 0x80.
        Shuffle VEX_Vpshufb_ymm_ymm_ymmm256 EVEX_Vpshufb_zmm_k1z_zmm_zmmm512,
        /// The i32 lanes of `b` that `a` names.
        Permute VEX_Vpermd_ymm_ymm_ymmm256 EVEX_Vpermd_zmm_k1z_zmm_zmmm512b32,
        Xor VEX_Vpxor_ymm_ymm_ymmm256 EVEX_Vpxord_zmm_k1z_zmm_zmmm512b32,
    }
}

codes! {
    /// Shifts of every lane by the same number of bits.
    Shift {
        LeftI16 VEX_Vpsllw_ymm_ymm_imm8 EVEX_Vpsllw_zmm_k1z_zmmm512_imm8,
        RightU16 VEX_Vpsrlw_ymm_ymm_imm8 EVEX_Vpsrlw_zmm_k1z_zmmm512_imm8,
        LeftI32 VEX_Vpslld_ymm_ymm_imm8 EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8,
        RightI32 VEX_Vpsrad_ymm_ymm_imm8 EVEX_Vpsrad_zmm_k1z_zmmm512b32_imm8,
        RightU64 VEX_Vpsrlq_ymm_ymm_imm8 EVEX_Vpsrlq_zmm_k1z_zmmm512b64_imm8,
    }
}

codes! {
    /// Shifts of every lane by the number in the lane of another vector.
    ShiftBy {
        LeftI32 VEX_Vpsllvd_ymm_ymm_ymmm256 EVEX_Vpsllvd_zmm_k1z_zmm_zmmm512b32,
        RightI32 VEX_Vpsravd_ymm_ymm_ymmm256 EVEX_Vpsravd_zmm_k1z_zmm_zmmm512b32,
    }
}

codes! {
    /// Loads with extension of every element.
    Widen {
        I8ToI16 VEX_Vpmovsxbw_ymm_xmmm128 EVEX_Vpmovsxbw_zmm_k1z_ymmm256,
        U8ToI32 VEX_Vpmovzxbd_ymm_xmmm64 EVEX_Vpmovzxbd_zmm_k1z_xmmm128,
        I8ToI32 VEX_Vpmovsxbd_ymm_xmmm64 EVEX_Vpmovsxbd_zmm_k1z_xmmm128,
        I16ToI32 VEX_Vpmovsxwd_ymm_xmmm128 EVEX_Vpmovsxwd_zmm_k1z_ymmm256,
    }
}

impl Asm {
    fn view(&self) -> View {
        match self.isa {
            Isa::Avx2 | Isa::Avx512Vl => View::Y,
            Isa::Avx512 => View::Z,
        }
    }

    fn reg(&self, v: V) -> Operand {
        Operand::Vec(v, self.view())
    }

    fn src(&self, src: Src) -> Operand {
        match src {
            Src::Reg(v) => self.reg(v),
            Src::Mem(m) => Operand::Mem(m),
        }
    }

    /// `dst = a op b`; only `b` may be in memory.
    pub fn binary(&mut self, op: Binary, dst: V, a: V, b: impl Into<Src>) {
        let operands = [self.reg(dst), self.reg(a), self.src(b.into())];
        self.push(op.code(self.isa), operands);
    }

    pub fn shift(&mut self, op: Shift, dst: V, a: V, bits: u8) {
        let operands = [self.reg(dst), self.reg(a), Operand::Imm(OpKind::Immediate8, bits.into())];
        self.push(op.code(self.isa), operands);
    }

    pub fn shift_by(&mut self, op: ShiftBy, dst: V, a: V, bits: impl Into<Src>) {
        let operands = [self.reg(dst), self.reg(a), self.src(bits.into())];
        self.push(op.code(self.isa), operands);
    }

    /// A vector's worth of elements, extended.
    pub fn load_widened(&mut self, op: Widen, dst: V, from: Mem) {
        let operands = [self.reg(dst), Operand::Mem(from)];
        self.push(op.code(self.isa), operands);
    }

    /// The sums of four u8 (`x`) times i8 (`w`) products, added to `acc`'s i32 lanes.
    pub fn dot_u8i8(&mut self, acc: V, x: V, w: impl Into<Src>) {
        let code = match self.isa {
            Isa::Avx2 => Code::VEX_Vpdpbusd_ymm_ymm_ymmm256,
            Isa::Avx512Vl => Code::EVEX_Vpdpbusd_ymm_k1z_ymm_ymmm256b32,
            Isa::Avx512 => Code::EVEX_Vpdpbusd_zmm_k1z_zmm_zmmm512b32,
        };
        let operands = [self.reg(acc), self.reg(x), self.src(w.into())];
        self.push(code, operands);
    }

    /// The sums of two i16 products, added to `acc`'s i32 lanes.
    pub fn dot_i16(&mut self, acc: V, x: V, w: impl Into<Src>) {
        let code = match self.isa {
            Isa::Avx2 => Code::VEX_Vpdpwssd_ymm_ymm_ymmm256,
            Isa::Avx512Vl => Code::EVEX_Vpdpwssd_ymm_k1z_ymm_ymmm256b32,
            Isa::Avx512 => Code::EVEX_Vpdpwssd_zmm_k1z_zmm_zmmm512b32,
        };
        let operands = [self.reg(acc), self.reg(x), self.src(w.into())];
        self.push(code, operands);
    }

    pub fn zero(&mut self, dst: V) {
        self.binary(Binary::Xor, dst, dst, dst);
    }

    /// Costs no execution unit.
    pub fn copy(&mut self, dst: V, from: V) {
        let code = match self.isa {
            Isa::Avx2 | Isa::Avx512Vl => Code::VEX_Vmovdqu_ymm_ymmm256,
            Isa::Avx512 => Code::EVEX_Vmovdqu32_zmm_k1z_zmmm512,
        };
        let operands = [self.reg(dst), self.reg(from)];
        self.push(code, operands);
    }

    pub fn load(&mut self, dst: V, from: Mem) {
        let code = match self.isa {
            Isa::Avx2 | Isa::Avx512Vl => Code::VEX_Vmovdqu_ymm_ymmm256,
            Isa::Avx512 => Code::EVEX_Vmovdqu32_zmm_k1z_zmmm512,
        };
        let operands = [self.reg(dst), Operand::Mem(from)];
        self.push(code, operands);
    }

    pub fn store(&mut self, to: Mem, value: V) {
        let code = match self.isa {
            Isa::Avx2 | Isa::Avx512Vl => Code::VEX_Vmovdqu_ymmm256_ymm,
            Isa::Avx512 => Code::EVEX_Vmovdqu32_zmmm512_k1z_zmm,
        };
        let operands = [Operand::Mem(to), self.reg(value)];
        self.push(code, operands);
    }

    /// A vector's first bytes, all of them, a half or a quarter; the others become 0.
    pub fn load_first(&mut self, dst: V, from: Mem, bytes: usize) {
        let [x, y] = [View::X, View::Y].map(|view| Operand::Vec(dst, view));
        let (code, to) = match (self.isa, bytes) {
            (Isa::Avx512, 32) => (Code::EVEX_Vmovdqu32_ymm_k1z_ymmm256, y),
            (Isa::Avx512, 16) => (Code::EVEX_Vmovdqu32_xmm_k1z_xmmm128, x),
            (Isa::Avx2 | Isa::Avx512Vl, 16) => (Code::VEX_Vmovdqu_xmm_xmmm128, x),
            (Isa::Avx2 | Isa::Avx512Vl, 8) => (Code::VEX_Vmovq_xmm_xmmm64, x),
            _ => return self.load(dst, from),
        };
        self.push(code, [to, Operand::Mem(from)]);
    }

    /// Asks for the cache line at `from`, which need not be mapped.
    pub fn prefetch(&mut self, from: Mem) {
        self.push(Code::Prefetcht0_m8, [Operand::Mem(from)]);
    }

    /// The same, for the second-level cache.
    pub fn prefetch_second(&mut self, from: Mem) {
        self.push(Code::Prefetcht1_m8, [Operand::Mem(from)]);
    }

    /// The 32 bits at `from` in every lane.
    pub fn broadcast_i32(&mut self, dst: V, from: Mem) {
        let code = match self.isa {
            Isa::Avx2 | Isa::Avx512Vl => Code::VEX_Vpbroadcastd_ymm_xmmm32,
            Isa::Avx512 => Code::EVEX_Vpbroadcastd_zmm_k1z_xmmm32,
        };
        let operands = [self.reg(dst), Operand::Mem(from)];
        self.push(code, operands);
    }

    /// The `dwords` dwords at `from`, 1, 2, 4, 8 or 16, again and again; a vector's worth at most.
    pub fn broadcast(&mut self, dst: V, from: Mem, dwords: usize) {
        let code = match (self.isa, dwords) {
            (_, 1) => return self.broadcast_i32(dst, from),
            (Isa::Avx2 | Isa::Avx512Vl, 2) => Code::VEX_Vpbroadcastq_ymm_xmmm64,
            (Isa::Avx2 | Isa::Avx512Vl, 4) => Code::VEX_Vbroadcasti128_ymm_m128,
            (Isa::Avx512, 2) => Code::EVEX_Vpbroadcastq_zmm_k1z_xmmm64,
            (Isa::Avx512, 4) => Code::EVEX_Vbroadcasti32x4_zmm_k1z_m128,
            (Isa::Avx512, 8) => Code::EVEX_Vbroadcasti64x4_zmm_k1z_m256,
            _ => return self.load(dst, from),
        };
        let operands = [self.reg(dst), Operand::Mem(from)];
        self.push(code, operands);
    }

    /// Exchanges lanes `i` and `i ^ distance`; `distance` is at most 3.
    pub fn exchange(&mut self, value: V, distance: usize) {
        let code = match self.isa {
            Isa::Avx2 | Isa::Avx512Vl => Code::VEX_Vpshufd_ymm_ymmm256_imm8,
            Isa::Avx512 => Code::EVEX_Vpshufd_zmm_k1z_zmmm512b32_imm8,
        };
        let order = (0..4).map(|lane| (lane ^ distance) << (2 * lane)).sum::<usize>();
        let operands = [self.reg(value), self.reg(value), Operand::Imm(OpKind::Immediate8, order as i32)];
        self.push(code, operands);
    }

    /// The high halves of 64-bit lanes: those of `even` in even i32 lanes, those of `odd` in odd ones; after
    /// [`Asm::set_even_mask`]. Overwrites both; returns the one with the result.
    pub fn high_halves(&mut self, even: V, odd: V) -> V {
        match self.isa {
            Isa::Avx2 | Isa::Avx512Vl => {
                self.shift(Shift::RightU64, even, even, 32);
                let imm = Operand::Imm(OpKind::Immediate8, 0xaa);
                let operands = [self.reg(even), self.reg(even), self.reg(odd), imm];
                self.push(Code::VEX_Vpblendd_ymm_ymm_ymmm256_imm8, operands);
                even
            }
            Isa::Avx512 => {
                let operands = [self.reg(odd), self.reg(even)];
                self.push_masked(Code::EVEX_Vmovshdup_zmm_k1z_zmmm512, operands, Some(EVEN));
                odd
            }
        }
    }

    /// f32 lanes rounded to whole numbers, half-way ones to even.
    pub fn round_nearest(&mut self, dst: V, src: V) {
        // 0: to nearest; 8: without the exception of an inexact result.
        let operands = [self.reg(dst), self.reg(src), Operand::Imm(OpKind::Immediate8, 8)];
        let code = match self.isa {
            Isa::Avx2 | Isa::Avx512Vl => Code::VEX_Vroundps_ymm_ymmm256_imm8,
            Isa::Avx512 => Code::EVEX_Vrndscaleps_zmm_k1z_zmmm512b32_imm8_sae,
        };
        self.push(code, operands);
    }

    /// f32 lanes as i32.
    pub fn float_to_int(&mut self, dst: V, src: V) {
        let code = match self.isa {
            Isa::Avx2 | Isa::Avx512Vl => Code::VEX_Vcvtps2dq_ymm_ymmm256,
            Isa::Avx512 => Code::EVEX_Vcvtps2dq_zmm_k1z_zmmm512b32_er,
        };
        self.push(code, [self.reg(dst), self.reg(src)]);
    }

    /// Sets the lanes of `dst` to 0 where `test` is not a number.
    pub fn zero_unordered(&mut self, dst: V, test: V) {
        // 7: ordered.
        let ordered = Operand::Imm(OpKind::Immediate8, 7);
        let (kept, test) = (self.vec(), self.reg(test));
        match self.isa {
            Isa::Avx2 | Isa::Avx512Vl => {
                self.push(Code::VEX_Vcmpps_ymm_ymm_ymmm256_imm8, [self.reg(kept), test, test, ordered]);
                self.binary(Binary::And, dst, dst, kept);
            }
            Isa::Avx512 => {
                let mask = Operand::Mask(ORDERED);
                self.push(Code::EVEX_Vcmpps_kr_k1_zmm_zmmm512b32_imm8_sae, [mask, test, test, ordered]);
                self.zero(kept);
                let operands = [self.reg(kept), self.reg(dst)];
                self.push_masked(Code::EVEX_Vmovdqa32_zmm_k1z_zmmm512, operands, Some(ORDERED));
                self.push(Code::EVEX_Vmovdqa32_zmm_k1z_zmmm512, [self.reg(dst), self.reg(kept)]);
            }
        }
    }

    /// Stores the first bytes of `value`, a multiple of 8 in vectors of 256 bits, of 16 in those of 512. Overwrites `value`.
    pub fn store_first(&mut self, to: Mem, value: V, bytes: usize) {
        let [x, y, z] = [View::X, View::Y, View::Z].map(|view| Operand::Vec(value, view));
        let at = |offset: i32| Operand::Mem(Mem { disp: to.disp + offset, ..to });
        let quarter = |index: i32| Operand::Imm(OpKind::Immediate8, index);
        match (self.isa, bytes) {
            (Isa::Avx512, 64) => self.store(to, value),
            (Isa::Avx512, 48) => {
                self.push(Code::EVEX_Vmovdqu32_ymmm256_k1z_ymm, [at(0), y]);
                self.push(Code::EVEX_Vextracti32x4_xmmm128_k1z_zmm_imm8, [at(32), z, quarter(2)]);
            }
            (Isa::Avx512, 32) => self.push(Code::EVEX_Vmovdqu32_ymmm256_k1z_ymm, [at(0), y]),
            (Isa::Avx512, _) => self.push(Code::EVEX_Vmovdqu32_xmmm128_k1z_xmm, [at(0), x]),
            (_, 32) => self.store(to, value),
            (_, 24) => {
                self.push(Code::VEX_Vmovdqu_xmmm128_xmm, [at(0), x]);
                self.push(Code::VEX_Vextracti128_xmmm128_ymm_imm8, [x, y, quarter(1)]);
                self.push(Code::VEX_Vmovq_xmmm64_xmm, [at(16), x]);
            }
            (_, 16) => self.push(Code::VEX_Vmovdqu_xmmm128_xmm, [at(0), x]),
            _ => self.push(Code::VEX_Vmovq_xmmm64_xmm, [at(0), x]),
        }
    }

    /// Stores i32 lanes as i16 with saturation. Overwrites `value`.
    pub fn store_i16(&mut self, to: Mem, value: V) {
        match self.isa {
            Isa::Avx2 | Isa::Avx512Vl => {
                self.pack_halves(value);
                self.push(Code::VEX_Vmovdqu_xmmm128_xmm, [Operand::Mem(to), Operand::Vec(value, View::X)]);
            }
            Isa::Avx512 => {
                let operands = [Operand::Mem(to), Operand::Vec(value, View::Z)];
                self.push(Code::EVEX_Vpmovsdw_ymmm256_k1z_zmm, operands);
            }
        }
    }

    /// Stores i32 lanes as bytes with saturation to i8 or u8. Overwrites `value`.
    pub fn store_bytes(&mut self, to: Mem, value: V, signed: bool) {
        match self.isa {
            Isa::Avx2 | Isa::Avx512Vl => {
                self.pack_halves(value);
                let code =
                    if signed { Code::VEX_Vpacksswb_xmm_xmm_xmmm128 } else { Code::VEX_Vpackuswb_xmm_xmm_xmmm128 };
                let x = Operand::Vec(value, View::X);
                self.push(code, [x, x, x]);
                self.push(Code::VEX_Vmovq_xmmm64_xmm, [Operand::Mem(to), x]);
            }
            Isa::Avx512 => {
                let code =
                    if signed { Code::EVEX_Vpmovsdb_xmmm128_k1z_zmm } else { Code::EVEX_Vpmovusdb_xmmm128_k1z_zmm };
                if !signed {
                    // The unsigned narrowing takes a negative value for a large one.
                    let zero = self.vec();
                    self.zero(zero);
                    self.binary(Binary::MaxI32, value, value, zero);
                }
                self.push(code, [Operand::Mem(to), Operand::Vec(value, View::Z)]);
            }
        }
    }

    /// Stores two vectors of i32 lanes, one behind the other, as bytes with saturation. Overwrites both.
    pub fn store_bytes_pair(&mut self, to: Mem, [low, high]: [V; 2], signed: bool) {
        if self.isa == Isa::Avx512 {
            self.store_bytes(to, low, signed);
            let next = Mem { disp: to.disp + 16, ..to };
            return self.store_bytes(next, high, signed);
        }
        // Lanes of 128 bits: [l0 h0 | l1 h1], then [l0 l1 | h0 h1] after the quadwords are ordered.
        let (l, h) = (self.reg(low), self.reg(high));
        self.push(Code::VEX_Vpackssdw_ymm_ymm_ymmm256, [l, l, h]);
        let order = Operand::Imm(OpKind::Immediate8, 0b11_01_10_00);
        self.push(Code::VEX_Vpermq_ymm_ymmm256_imm8, [l, l, order]);
        let (x, y) = (Operand::Vec(low, View::X), Operand::Vec(high, View::X));
        self.push(Code::VEX_Vextracti128_xmmm128_ymm_imm8, [y, l, Operand::Imm(OpKind::Immediate8, 1)]);
        let code = if signed { Code::VEX_Vpacksswb_xmm_xmm_xmmm128 } else { Code::VEX_Vpackuswb_xmm_xmm_xmmm128 };
        self.push(code, [x, x, y]);
        self.push(Code::VEX_Vmovdqu_xmmm128_xmm, [Operand::Mem(to), x]);
    }

    /// Stores two to four vectors of i32 lanes of 512 bits, one behind the other, as bytes with saturation, then within
    /// `limits` in every byte; `order` is [`pack_orders`]' first. Overwrites all.
    pub fn store_bytes_packed(&mut self, to: Mem, vectors: &[V], signed: bool, order: Mem, limits: [Option<Mem>; 2]) {
        let &[a, b, ..] = vectors else { return };
        self.pack_bytes(vectors, signed, limits);
        self.load(b, order);
        self.binary(Binary::Permute, a, b, a);
        self.store_first(to, a, vectors.len() * self.isa.lanes());
    }

    /// Stores two vectors of i32 lanes of 512 bits, one behind the other, as i16 with saturation; `order` is
    /// [`pack_orders`]' second. Overwrites both.
    pub fn store_i16_pair(&mut self, to: Mem, [low, high]: [V; 2], order: Mem) {
        let z = |v| Operand::Vec(v, View::Z);
        self.push(Code::EVEX_Vpackssdw_zmm_k1z_zmm_zmmm512b32, [z(low), z(low), z(high)]);
        self.load(high, order);
        self.push(Code::EVEX_Vpermq_zmm_k1z_zmm_zmmm512b64, [z(low), z(high), z(low)]);
        self.store(to, low);
    }

    /// Stores two to four vectors of i32 lanes as bytes with saturation and then within `limits`, each where it belongs;
    /// `order`, for vectors of 512 bits, is [`pack_orders`]' first. Overwrites all.
    pub fn store_bytes_apart(
        &mut self,
        to: &[Mem],
        vectors: &[V],
        signed: bool,
        order: Option<Mem>,
        limits: [Option<Mem>; 2],
    ) {
        let &[first, second, ..] = vectors else { return };
        self.pack_bytes(vectors, signed, limits);
        let part = |index: i32| Operand::Imm(OpKind::Immediate8, index);
        if let Some(order) = order {
            self.load(second, order);
            self.binary(Binary::Permute, first, second, first);
            self.push(Code::EVEX_Vmovdqu32_xmmm128_k1z_xmm, [Operand::Mem(to[0]), Operand::Vec(first, View::X)]);
            for (&to, index) in to.iter().zip(0..).skip(1) {
                let operands = [Operand::Mem(to), Operand::Vec(first, View::Z), part(index)];
                self.push(Code::EVEX_Vextracti32x4_xmmm128_k1z_zmm_imm8, operands);
            }
            return;
        }
        // The lower 128 bits hold the first four bytes of each vector, the upper the last four.
        let last = vectors.get(2).copied().unwrap_or(second);
        let [low, high, last] = [first, second, last].map(|v| Operand::Vec(v, View::X));
        self.push(Code::VEX_Vextracti128_xmmm128_ymm_imm8, [high, Operand::Vec(first, View::Y), part(1)]);
        if to.len() > 2 {
            self.push(Code::VEX_Vpunpckhdq_xmm_xmm_xmmm128, [last, low, high]);
        }
        self.push(Code::VEX_Vpunpckldq_xmm_xmm_xmmm128, [low, low, high]);
        for (pair, value) in to.chunks(2).zip([low, last]) {
            self.push(Code::VEX_Vmovq_xmmm64_xmm, [Operand::Mem(pair[0]), value]);
            if let Some(&to) = pair.get(1) {
                self.push(Code::VEX_Vmovhps_m64_xmm, [Operand::Mem(to), value]);
            }
        }
    }

    /// Packs two to four vectors of i32 lanes into the first, as bytes with saturation and then within `limits` in every
    /// byte: in each 128 bits, four bytes of every vector. Overwrites all.
    fn pack_bytes(&mut self, vectors: &[V], signed: bool, limits: [Option<Mem>; 2]) {
        let &[a, b, ref rest @ ..] = vectors else { return };
        self.binary(Binary::PackI32, a, a, b);
        let upper = rest.first().map_or(a, |&c| {
            let d = rest.get(1).copied().unwrap_or(c);
            self.binary(Binary::PackI32, c, c, d);
            c
        });
        let [pack, max, min] = if signed {
            [Binary::PackI16, Binary::MaxI8, Binary::MinI8]
        } else {
            [Binary::PackI16ToU8, Binary::MaxU8, Binary::MinU8]
        };
        self.binary(pack, a, a, upper);
        for (op, limit) in [max, min].into_iter().zip(limits) {
            if let Some(limit) = limit {
                self.binary(op, a, a, limit);
            }
        }
    }

    /// The i32 lanes as i16 in the lower half.
    fn pack_halves(&mut self, value: V) {
        let high = self.vec();
        let (x, h) = (Operand::Vec(value, View::X), Operand::Vec(high, View::X));
        let upper = Operand::Imm(OpKind::Immediate8, 1);
        self.push(Code::VEX_Vextracti128_xmmm128_ymm_imm8, [h, Operand::Vec(value, View::Y), upper]);
        self.push(Code::VEX_Vpackssdw_xmm_xmm_xmmm128, [x, x, h]);
    }

    /// A word of the argument's table.
    pub fn argument(&mut self, table: Gpr, word: usize) -> Gpr {
        self.load_word(Mem::word(table, word))
    }
}

/// What orders the lanes of 512-bit vectors that were packed four to one and two to one, as vectors of i32. Packing works in
/// parts of 128 bits: word 4k + v of four to one, quadword 2k + v of two to one, holds part k of vector v.
pub fn pack_orders() -> [Vec<i32>; 2] {
    let bytes = (0..16).map(|to| to % 4 * 4 + to / 4).collect();
    let words = (0..8).flat_map(|to| [to % 4 * 2 + to / 4, 0]).collect();
    [bytes, words]
}
