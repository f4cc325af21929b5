//! The model zoo: torchvision's classification networks written as float ONNX with seeded random weights.
//!
//! Comes in: a name of [`NAMES`] and [`ZooOptions`]. Goes out: the bytes of an opset-17 model as an unfolded torch export
//! has it: input `input` `[1, 3, S, S]`, output `output` `[1, classes]`, convolution, batch normalisation and activation as
//! nodes of their own, module paths such as `layer1.0.conv1` as node names. The tensor a node writes is its name plus `.out`.
//!
//! What holds: the same name and options give the same bytes; activations of the float network are of order one at
//! every depth for inputs of zero mean and unit variance, because batch-norm statistics follow from the analytic
//! moments of the values they normalise (see [`net`]).

mod inception;
mod mobilenet;
mod net;
mod resnet;
mod squeezenet;
mod vgg;

use net::Net;

/// Every network [`write`] knows. `resnet50` has the stride of a stage on its 3x3 convolution (torchvision's form);
/// `resnet50_v1` has it on the first 1x1 (the original form, and that of HAWQ's published latency tables).
pub const NAMES: [&str; 10] = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet50_v1",
    "resnext50_32x4d",
    "inception_v3",
    "mobilenet_v2",
    "squeezenet1_1",
    "vgg11_bn",
    "tiny_resnet",
];

/// What to vary in a zoo network. The default is the published network with seed 0.
#[derive(Clone, Debug, PartialEq)]
pub struct ZooOptions {
    /// Height and width of the input; `None` means the published size (299 for Inception, 224 for the rest, 32 for tiny).
    pub image_size: Option<usize>,
    /// Seed of every random weight.
    pub seed: u64,
    /// Outputs of the classifier.
    pub classes: usize,
    /// Factor on every channel count; a factor other than 1 rounds to multiples of 4 (8 in MobileNetV2), at least that.
    pub width: f64,
}

impl Default for ZooOptions {
    fn default() -> Self {
        ZooOptions { image_size: None, seed: 0, classes: 1000, width: 1.0 }
    }
}

/// Why a zoo network could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ZooError {
    /// The name is not in [`NAMES`].
    #[error("unknown network `{0}`; known are {known}", known = NAMES.join(", "))]
    UnknownName(String),
    /// An option is outside what the network can be built with.
    #[error("option `{option}`: {found} is not usable; {supported}")]
    Option {
        /// Field of [`ZooOptions`].
        option: &'static str,
        /// The value given.
        found: String,
        /// What would be accepted.
        supported: &'static str,
    },
    /// The image is so small that a window no longer fits.
    #[error("image size {image_size} is too small: `{node}` would have an empty output")]
    ImageTooSmall {
        /// Input height and width.
        image_size: usize,
        /// First node whose output would be empty.
        node: String,
    },
}

/// Writes the network `name` as ONNX.
///
/// # Errors
/// [`ZooError`] for an unknown name, zero classes, a width outside (0, 8], an image larger than 4096 or too small.
pub fn write(name: &str, options: &ZooOptions) -> Result<Vec<u8>, ZooError> {
    if !NAMES.contains(&name) {
        return Err(ZooError::UnknownName(name.into()));
    }
    if options.classes == 0 || options.classes > 1 << 20 {
        let found = options.classes.to_string();
        return Err(ZooError::Option { option: "classes", found, supported: "1 to 2^20" });
    }
    if !(options.width > 0.0 && options.width <= 8.0) {
        let found = options.width.to_string();
        return Err(ZooError::Option { option: "width", found, supported: "more than 0, at most 8" });
    }
    let published = match name {
        "inception_v3" => 299,
        "tiny_resnet" => 32,
        _ => 224,
    };
    let size = options.image_size.unwrap_or(published);
    if size == 0 || size > 4096 {
        return Err(ZooError::Option { option: "image_size", found: size.to_string(), supported: "1 to 4096" });
    }
    let mut net = Net::new(name, size, options);
    let logits = match name {
        "resnet18" => resnet::basic(&mut net, &[64, 128, 256, 512], &[2, 2, 2, 2])?,
        "resnet34" => resnet::basic(&mut net, &[64, 128, 256, 512], &[3, 4, 6, 3])?,
        "resnet50" => resnet::bottleneck(&mut net, &[3, 4, 6, 3], resnet::StrideOn::Conv2, 1)?,
        "resnext50_32x4d" => resnet::bottleneck(&mut net, &[3, 4, 6, 3], resnet::StrideOn::Conv2, 32)?,
        "resnet50_v1" => resnet::bottleneck(&mut net, &[3, 4, 6, 3], resnet::StrideOn::Conv1, 1)?,
        "inception_v3" => inception::inception_v3(&mut net)?,
        "mobilenet_v2" => mobilenet::mobilenet_v2(&mut net)?,
        "squeezenet1_1" => squeezenet::squeezenet1_1(&mut net)?,
        "vgg11_bn" => vgg::vgg11_bn(&mut net)?,
        _ => resnet::tiny(&mut net)?,
    };
    Ok(net.finish(&logits))
}

#[cfg(test)]
mod tests;
