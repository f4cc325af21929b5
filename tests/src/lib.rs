//! What the tests and benches across crates share: networks ready to compile.

use std::path::{Path, PathBuf};

use hawqc_driver::{CompileOptions, Compiled, Error, Precision, Source, Target, compile, fill, float_form, lower};
use hawqc_ir::{Graph, Tensor};
use hawqc_onnx::zoo::{self, ZooOptions};
use hawqc_quantize::{Calibration, Calibrator, Options, PrecisionPlan, hawq};

/// The project's root folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// A float network with its calibration.
pub struct Network {
    pub source: Source,
    pub float: Graph,
    pub calibration: Calibration,
}

impl Network {
    /// A network of the zoo, calibrated on two random images.
    pub fn zoo(name: &str, options: &ZooOptions) -> Network {
        Network::from_bytes(&zoo::write(name, options).unwrap(), 2)
    }

    /// A model in memory, calibrated on `samples` random images.
    pub fn from_bytes(bytes: &[u8], samples: u64) -> Network {
        let source = Source::from_bytes(bytes, None, Some(1)).unwrap();
        let float = float_form(&source).unwrap();
        let mut calibrator = Calibrator::new(&float).unwrap();
        for seed in 0..samples {
            calibrator.observe(&images(&float, seed)).unwrap();
        }
        let calibration = calibrator.finish(&source.hash).unwrap();
        Network { source, float, calibration }
    }

    /// `8`, `4`, `w4a8`, or the name of one of HAWQ-V3's published configurations.
    pub fn plan(&self, bits: &str) -> PrecisionPlan {
        match bits {
            "8" => PrecisionPlan::uniform(&self.float, 8, 8),
            "4" => PrecisionPlan::uniform(&self.float, 4, 4),
            "w4a8" => PrecisionPlan::uniform(&self.float, 4, 8),
            config => hawq::plan(&self.float, config),
        }
        .unwrap()
    }

    pub fn compile(&self, plan: PrecisionPlan, target: Target, keep_values: bool) -> Result<Compiled, Error> {
        let precision = Precision { calibration: self.calibration.clone(), plan, options: Options::default() };
        let lowered = lower(&self.source, Some(&precision))?;
        compile(lowered, &CompileOptions { keep_values, ..CompileOptions::new(target) })
    }
}

/// Random inputs of a graph, the same for the same seed.
pub fn images(graph: &Graph, seed: u64) -> Vec<Tensor> {
    fill::inputs(graph, seed).unwrap()
}
