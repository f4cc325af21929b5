//! What a float network's layers are, which feed which, and plans that mix widths.

use std::collections::BTreeMap;

use hawqc_ir::{Graph, Op, ValueId};
use hawqc_quantize::plan::quantizable_layers;
use hawqc_quantize::{LayerBits, PrecisionPlan, QuantizeError};

/// The layers of a network and how they are joined.
pub struct Structure {
    pub layers: Vec<String>,
    /// Pairs of positions: the first layer alone computes the input of the second.
    pub feeds: Vec<[usize; 2]>,
    /// Pairs of positions: both layers read one value.
    pub siblings: Vec<[usize; 2]>,
    /// Layers that stay at 8 bits in uniform plans: the first ones and the last.
    pub edges: Vec<bool>,
}

impl Structure {
    /// Of a network in floats.
    pub fn of(graph: &Graph) -> Result<Structure, QuantizeError> {
        let found = quantizable_layers(graph);
        let position: BTreeMap<ValueId, usize> = found.iter().enumerate().map(|(i, (id, _))| (*id, i)).collect();
        let sources: Vec<Option<ValueId>> = found.iter().map(|(id, _)| source(graph, *id)).collect();
        let mut feeds = Vec::new();
        let mut siblings = Vec::new();
        for (j, src) in sources.iter().enumerate() {
            if let Some(&i) = src.as_ref().and_then(|src| position.get(src)) {
                feeds.push([i, j]);
            }
            siblings.extend((0..j).filter(|&i| src.is_some() && sources[i] == *src).map(|i| [i, j]));
        }
        let narrow = PrecisionPlan::uniform(graph, 4, 4)?;
        let edges = narrow.layers().iter().map(|(_, bits)| *bits == LayerBits::both(8)).collect();
        Ok(Structure { layers: found.into_iter().map(|(_, name)| name).collect(), feeds, siblings, edges })
    }

    /// The choices of a plan with one width everywhere but at the edges.
    pub fn uniform(&self, width: &str) -> Vec<String> {
        self.edges.iter().map(|&edge| if edge { "w8a8" } else { width }.to_owned()).collect()
    }

    /// The choices of a plan where every inner layer has one of `widths` at random, the same for the same seed.
    pub fn mixture(&self, widths: &[String], seed: u64) -> Vec<String> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut pick = |edge: &bool| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            // Splitmix64.
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let chosen = (z ^ (z >> 31)) % widths.len().max(1) as u64;
            if *edge { "w8a8".to_owned() } else { widths[chosen as usize].clone() }
        };
        self.edges.iter().map(&mut pick).collect()
    }

    /// The plan with these choices.
    pub fn plan(&self, choices: &[String], residual_bits: u8, label: &str) -> Result<PrecisionPlan, QuantizeError> {
        let bits = |(name, choice): (&String, &String)| match parse(choice) {
            Some(bits) => Ok((name.clone(), bits)),
            None => Err(QuantizeError::Plan(format!("`{choice}` is not a choice of widths such as w4a8"))),
        };
        let layers = self.layers.iter().zip(choices).map(bits).collect::<Result<Vec<_>, _>>()?;
        PrecisionPlan::new(layers, residual_bits, label)
    }
}

/// `w4a8`, or one number for both.
pub fn parse(choice: &str) -> Option<LayerBits> {
    let (weights, activations) = match choice.strip_prefix('w') {
        Some(rest) => rest.split_once('a')?,
        None => (choice, choice),
    };
    let bits = |text: &str| text.parse().ok().filter(|b| hawqc_quantize::plan::WIDTHS.contains(b));
    Some(LayerBits { weights: bits(weights)?, activations: bits(activations)? })
}

/// Where the values that a layer reads come from, through operators that compute nothing between layers of
/// their own: the layer before, an addition, an input.
fn source(graph: &Graph, layer: ValueId) -> Option<ValueId> {
    let mut value = *graph.args(layer).first()?;
    loop {
        let args: Vec<ValueId> = graph.args(value).into_iter().filter(|&a| graph.tensor(a).is_none()).collect();
        match (graph.op(value), args.as_slice()) {
            (Op::Conv(_) | Op::Input(_), _) => return Some(value),
            (_, [one]) => value = *one,
            _ => return Some(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use hawqc_onnx::zoo::{self, ZooOptions};

    use super::*;
    use crate::{Source, float_form};

    fn structure() -> Structure {
        let options = ZooOptions { image_size: Some(32), classes: 10, width: 0.25, seed: 1 };
        let source = Source::from_bytes(&zoo::write("resnet50", &options).unwrap(), None, None).unwrap();
        Structure::of(&float_form(&source).unwrap()).unwrap()
    }

    #[test]
    fn resnet50() {
        let found = structure();
        let named = |pairs: &[[usize; 2]]| -> Vec<[&str; 2]> {
            pairs.iter().map(|pair| pair.map(|i| found.layers[i].as_str())).collect()
        };
        assert_eq!(found.layers.len(), 54);
        let feeds = named(&found.feeds);
        assert!(feeds.contains(&["layer2.1.conv1", "layer2.1.conv2"]));
        assert!(feeds.contains(&["layer2.1.conv2", "layer2.1.conv3"]));
        // Behind an addition, and before one, nothing feeds alone.
        assert!(feeds.iter().all(|[a, _]| !a.ends_with("conv3") && !a.ends_with("downsample.0")));
        let siblings = named(&found.siblings);
        let mut expected: Vec<[&str; 2]> = siblings.clone();
        expected
            .retain(|pair| pair.iter().any(|n| n.ends_with("conv1")) && pair.iter().any(|n| n.contains("downsample")));
        assert_eq!((siblings.len(), expected), (4, siblings));
        let edges = found.layers.iter().zip(&found.edges).filter(|(_, edge)| **edge).map(|(n, _)| n.as_str());
        assert_eq!(edges.collect::<Vec<_>>(), ["conv1", "fc"]);
    }

    #[test]
    fn mixtures_repeat_and_differ() {
        let found = structure();
        let widths = ["w8a8", "w4a4", "w4a8"].map(String::from);
        let one = found.mixture(&widths, 1);
        assert_eq!(one, found.mixture(&widths, 1));
        assert_ne!(one, found.mixture(&widths, 2));
        for width in &widths {
            assert!(one.iter().filter(|c| *c == width).count() >= 8, "{one:?}");
        }
        assert_eq!((one[0].as_str(), one[53].as_str()), ("w8a8", "w8a8"));
        let plan = found.plan(&one, 16, "a mixture").unwrap();
        assert_eq!(plan.layers().len(), 54);
        assert!(found.plan(&vec!["w9a9".to_string(); 54], 16, "").is_err());
    }
}
