//! Sample data: an `.npz` with `images` (N,C,H,W; f32, or u8 which is divided by 255) and optional
//! `labels`, or a folder of images, one folder a class in alphabetical order. Images from a folder
//! are resized to the network's input, scaled to 0..1, and with three channels normalised by
//! ImageNet's mean and deviation, as torchvision's networks expect.

use std::path::{Path, PathBuf};

use hawqc_runtime::npy::Npz;
use hawqc_runtime::{Elem, Tensor};

use crate::failure::{Failure, io};

const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
const IMAGE_EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];

/// Samples of one shape, read as they are needed.
pub struct Dataset {
    source: Source,
    /// `[C, H, W]` of a sample.
    shape: [usize; 3],
    labels: Option<Vec<usize>>,
}

enum Source {
    Array(Tensor),
    Files(Vec<PathBuf>),
}

impl Dataset {
    /// Opens `path` for a network whose input is `[N, C, H, W]` = `input`.
    pub fn open(path: &Path, input: &[usize]) -> Result<Dataset, Failure> {
        let &[_, c, h, w] = input else {
            return Err(Failure::invalid(format!("images need a network whose input is [N,C,H,W], found {input:?}")));
        };
        let dataset = if path.is_dir() { from_folder(path, [c, h, w])? } else { from_npz(path, [c, h, w])? };
        match &dataset.labels {
            Some(labels) if labels.len() != dataset.len() => Err(Failure::invalid(format!(
                "{}: {} images but {} labels",
                path.display(),
                dataset.len(),
                labels.len()
            ))),
            _ if dataset.len() == 0 => Err(Failure::invalid(format!("{}: no images", path.display()))),
            _ => Ok(dataset),
        }
    }

    /// A dataset from arrays that are already there.
    pub fn from_arrays(images: Tensor, labels: Option<&Tensor>, shape: [usize; 3]) -> Result<Dataset, Failure> {
        check_images(&images, shape).map_err(Failure::invalid)?;
        let labels = labels.map(read_labels).transpose().map_err(Failure::invalid)?;
        Ok(Dataset { source: Source::Array(images), shape, labels })
    }

    pub fn len(&self) -> usize {
        match &self.source {
            Source::Array(images) => images.shape()[0],
            Source::Files(files) => files.len(),
        }
    }

    /// The labels, or an error that says how to give them.
    pub fn labels(&self) -> Result<&[usize], Failure> {
        self.labels.as_deref().ok_or_else(|| {
            Failure::invalid("the data has no labels")
                .hint("add an array `labels` to the .npz, or use one folder a class")
        })
    }

    /// Sample `index` as `[C, H, W]` values.
    pub fn sample(&self, index: usize) -> Result<Vec<f32>, Failure> {
        match &self.source {
            Source::Files(files) => read_image(&files[index], self.shape),
            Source::Array(images) => {
                let count = self.shape.iter().product::<usize>();
                let at = index * count..(index + 1) * count;
                // `check_images` admits these two only.
                match (images.as_slice::<f32>(), images.as_slice::<u8>()) {
                    (Some(values), _) => Ok(values[at].to_vec()),
                    (_, Some(values)) => Ok(values[at].iter().map(|&v| f32::from(v) / 255.0).collect()),
                    _ => Err(Failure::invalid("images must be f32 or u8")),
                }
            }
        }
    }
}

fn check_images(images: &Tensor, [c, h, w]: [usize; 3]) -> Result<(), String> {
    let fits = matches!(images.shape(), &[_, ic, ih, iw] if [ic, ih, iw] == [c, h, w]);
    match images.elem() {
        Elem::F32 | Elem::U8 if fits => Ok(()),
        Elem::F32 | Elem::U8 => {
            Err(format!("`images` has shape {:?}; the network takes [N,{c},{h},{w}]", images.shape()))
        }
        other => Err(format!("`images` is {other}; expected f32 or u8")),
    }
}

fn read_labels(labels: &Tensor) -> Result<Vec<usize>, String> {
    fn convert<T: Copy + TryInto<usize>>(values: &[T]) -> Result<Vec<usize>, String> {
        values.iter().map(|&v| v.try_into().map_err(|_| "`labels` has a negative entry".to_string())).collect()
    }
    match (labels.as_slice::<i64>(), labels.as_slice::<i32>(), labels.as_slice::<u8>()) {
        (Some(values), _, _) => convert(values),
        (_, Some(values), _) => convert(values),
        (_, _, Some(values)) => convert(values),
        _ => Err(format!("`labels` is {}; expected i64, i32 or u8", labels.elem())),
    }
}

fn from_npz(path: &Path, shape: [usize; 3]) -> Result<Dataset, Failure> {
    let mut archive = Npz::open(path).map_err(|e| Failure::invalid(e.to_string()))?;
    let mut read = |name: &str| archive.read(name).map_err(|e| Failure::invalid(e.to_string()));
    let images = read("images")?;
    let labels = if archive.contains("labels") { Some(archive.read("labels")) } else { None };
    let labels = labels.transpose().map_err(|e| Failure::invalid(e.to_string()))?;
    Dataset::from_arrays(images, labels.as_ref(), shape)
        .map_err(|f| Failure::invalid(format!("{}: {}", path.display(), f.message)))
}

fn from_folder(path: &Path, shape: [usize; 3]) -> Result<Dataset, Failure> {
    let classes: Vec<PathBuf> = sorted_entries(path)?.into_iter().filter(|p| p.is_dir()).collect();
    let is_image = |p: &PathBuf| {
        let extension = p.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        IMAGE_EXTENSIONS.contains(&extension.as_str())
    };
    if classes.is_empty() {
        let files = sorted_entries(path)?.into_iter().filter(is_image).collect();
        return Ok(Dataset { source: Source::Files(files), shape, labels: None });
    }
    let (mut files, mut labels) = (Vec::new(), Vec::new());
    for (label, class) in classes.iter().enumerate() {
        let images = sorted_entries(class)?.into_iter().filter(is_image);
        images.for_each(|file| {
            files.push(file);
            labels.push(label);
        });
    }
    Ok(Dataset { source: Source::Files(files), shape, labels: Some(labels) })
}

fn sorted_entries(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(path).map_err(io(path))?;
    let mut paths = entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(io(path))?;
    paths.sort();
    Ok(paths)
}

fn read_image(path: &Path, [c, h, w]: [usize; 3]) -> Result<Vec<f32>, Failure> {
    let image = image::open(path).map_err(|e| Failure::invalid(format!("{}: {e}", path.display())))?;
    let (width, height) = (w as u32, h as u32);
    let image = image.resize_exact(width, height, image::imageops::FilterType::Triangle);
    match c {
        1 => Ok(image.to_luma8().into_raw().into_iter().map(|v| f32::from(v) / 255.0).collect()),
        3 => {
            let pixels = image.to_rgb8().into_raw();
            let normalised =
                |channel: usize, v: u8| (f32::from(v) / 255.0 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel];
            let plane = |channel| pixels.iter().skip(channel).step_by(3).map(move |&v| normalised(channel, v));
            Ok((0..3).flat_map(plane).collect())
        }
        _ => Err(Failure::invalid(format!("images have 1 or 3 channels, the network takes {c}"))),
    }
}
