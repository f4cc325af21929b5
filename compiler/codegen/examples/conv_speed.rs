//! Speed of single convolutions with requantisation, through the JIT, on one thread.
//!
//! Every answer is compared with the interpreter before it is timed. Arguments, all optional: a
//! target name, then `all` to time every schedule instead of the default one, or `asm` to print the
//! kernels' code.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use hawqc_codegen::target::Target;
use hawqc_codegen::{ModelInfo, Options, compile, jit, machine};
use hawqc_ir::text::seeded;
use hawqc_ir::{Arg, Conv, Elem, Graph, KernelSpec, Op, Range, Requant, Tensor, TensorType};
use hawqc_runtime::session::Session;
use hawqc_runtime::tensor::Tensor as Buffer;
use hawqc_schedules::Schedule;

struct Layer {
    name: &'static str,
    src: Elem,
    wei: Elem,
    size: usize,
    c: usize,
    k: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
}

const fn layer(name: &'static str, size: usize, c: usize, k: usize, kernel: usize, stride: usize) -> Layer {
    Layer { name, src: Elem::U8, wei: Elem::I8, size, c, k, kernel, stride, groups: 1 }
}

const fn depthwise(name: &'static str, size: usize, c: usize, stride: usize) -> Layer {
    Layer { groups: c, ..layer(name, size, c, c, 3, stride) }
}

const LAYERS: [Layer; 19] = [
    layer("3x3 56x56 64->64", 56, 64, 64, 3, 1),
    layer("3x3 28x28 128->128", 28, 128, 128, 3, 1),
    layer("3x3 14x14 256->256", 14, 256, 256, 3, 1),
    layer("3x3 7x7 512->512", 7, 512, 512, 3, 1),
    Layer { wei: Elem::I4, src: Elem::U4, ..layer("3x3 28x28 128->128 u4 i4", 28, 128, 128, 3, 1) },
    Layer { wei: Elem::I4, src: Elem::U4, ..layer("3x3 7x7 512->512 u4 i4", 7, 512, 512, 3, 1) },
    layer("1x1 56x56 256->64", 56, 256, 64, 1, 1),
    layer("1x1 14x14 256->1024", 14, 256, 1024, 1, 1),
    layer("1x1 112x112 16->96", 112, 16, 96, 1, 1),
    layer("1x1 56x56 24->144", 56, 24, 144, 1, 1),
    layer("7x7/2 224x224 3->64", 224, 3, 64, 7, 2),
    layer("1x1 1x1 2048->1000", 1, 2048, 1000, 1, 1),
    depthwise("depthwise 3x3/2 112x112 96", 112, 96, 2),
    depthwise("depthwise 3x3 56x56 144", 56, 144, 1),
    depthwise("depthwise 3x3 14x14 384", 14, 384, 1),
    depthwise("depthwise 3x3 7x7 960", 7, 960, 1),
    depthwise("depthwise 3x3 112x112 32", 112, 32, 1),
    Layer { wei: Elem::I4, src: Elem::U4, ..layer("3x3 56x56 64->64 u4 i4", 56, 64, 64, 3, 1) },
    Layer { wei: Elem::I4, src: Elem::U4, ..layer("3x3 14x14 256->256 u4 i4", 14, 256, 256, 3, 1) },
];

impl Layer {
    fn graph(&self) -> Result<(Graph, KernelSpec), Box<dyn Error>> {
        let pad = self.kernel / 2;
        let src = TensorType::new(self.src, [1, self.size, self.size, self.c]);
        let wei = TensorType::new(self.wei, [self.k, self.kernel, self.kernel, self.c / self.groups]);
        let range = wei.int_range()?;
        let per_channel = |elem, range| seeded(&TensorType::new(elem, [self.k]), 3, range);
        let constants = [
            seeded(&wei, 1, range)?,
            per_channel(Elem::I32, Range::new(-1000, 1000))?,
            per_channel(Elem::I32, Range::new(1 << 30, (1 << 31) - 1))?,
            per_channel(Elem::U8, Range::new(40, 43))?,
        ];
        let mut types = vec![src.clone()];
        types.extend(constants.iter().map(Tensor::ty));
        let conv = Conv { stride: [self.stride; 2], pad: [pad; 4], groups: self.groups, ..Conv::unit() };
        let requant = Requant::to_range(Range::new(0, 255), Elem::U8);
        let body: Vec<(Op, Vec<Arg>)> = vec![
            (conv.into(), vec![Arg::Operand(0), Arg::Operand(1), Arg::Operand(2)]),
            (requant.into(), vec![Arg::Step(0), Arg::Operand(3), Arg::Operand(4)]),
        ];
        let spec = KernelSpec::new(types, body)?;
        let mut graph = Graph::new();
        let mut args = vec![graph.input("x", src)?];
        args.extend(constants.map(|tensor| graph.constant(tensor)));
        let value = graph.add(self.name, Op::Kernel(Arc::new(spec.clone())), &args)?;
        graph.output("y", value);
        Ok((graph, spec))
    }

    fn macs(&self) -> f64 {
        let out = self.size.div_ceil(self.stride);
        (out * out * self.c / self.groups * self.k * self.kernel * self.kernel) as f64
    }

    fn time(&self, target: &Target, schedule: Schedule) -> Result<f64, Box<dyn Error>> {
        let (graph, spec) = self.graph()?;
        let mut options = Options::new(target.clone());
        options.schedules.insert(spec.clone(), schedule);
        let model = jit(&graph, &ModelInfo::default(), &options)?;
        let mut session = Session::new(Arc::new(model), Some(1))?;
        let input = seeded(&spec.operands()[0], 9, spec.operands()[0].int_range()?)?;
        let buffer = Buffer::from_bytes(hawqc_runtime::Elem::U8, input.shape().to_vec(), &input.to_bytes())?;
        let inputs = [buffer.view()];
        let found = session.run(&inputs)?;
        let expected = hawqc_ir::interp::run(&graph, &[input])?;
        if found[0].bytes() != expected[0].to_bytes() {
            return Err(format!("{}: wrong answer with {schedule}", self.name).into());
        }
        let mut best = f64::INFINITY;
        let began = Instant::now();
        while began.elapsed().as_secs_f64() < 0.4 {
            let start = Instant::now();
            session.run(&inputs)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(best)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let target = Target::parse(arguments.first().map_or("host", String::as_str))?;
    let mode = arguments.get(1).map_or("", String::as_str);
    let only = arguments.get(2);
    for layer in LAYERS.iter().filter(|l| only.is_none_or(|o| l.name.contains(o.as_str()))) {
        let (graph, spec) = layer.graph()?;
        if mode == "asm" {
            let options = Options { listing: true, ..Options::new(target.clone()) };
            for listing in compile(&graph, &ModelInfo::default(), &options)?.listings {
                println!("{}:\n{}", listing.symbol, listing.assembly);
            }
            continue;
        }
        let every = mode == "all";
        let of = if every { Schedule::candidates } else { Schedule::preferred };
        for schedule in of(&spec, machine(&target)) {
            let seconds = match layer.time(&target, schedule) {
                Ok(seconds) => seconds,
                Err(error) => {
                    // The weights rule a schedule out.
                    println!("{:<28} {schedule}: {}", layer.name, error.to_string().lines().next().unwrap_or_default());
                    continue;
                }
            };
            let rate = layer.macs() / seconds / 1e9;
            println!("{:<28} {:>9.1} us {rate:>7.1} GMAC/s  {schedule}", layer.name, seconds * 1e6);
            if !every {
                break;
            }
        }
    }
    Ok(())
}
