//! C interface of the runtime: load a model folder, run it. The header `ofa.h` is made of this file by
//! `cbindgen --config cbindgen.toml --output ofa.h src/lib.rs`.
//!
//! No panic crosses the border, and every pointer and length is checked as far as that is possible. A pointer to a
//! model is NULL or comes from `ofa_load` and has not been freed, wherever it is passed.

#[cfg(test)]
mod tests;

use ofa_evaluate::Model;
use ofa_evaluate::runtime::with_threads;
use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;
use std::sync::Mutex;

/// Version of this crate.
const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"unknown",
};

/// Largest number of threads.
const MAX_THREADS: usize = 1024;

thread_local! {
    /// What went wrong last on this thread.
    static ERROR: RefCell<CString> = RefCell::default();
}

/// A loaded model. Several threads may use one at the same time: its runs take place one after the other.
pub struct OfaModel {
    model: Mutex<Model>,
    threads: usize,
    resolution: usize,
    classes: Vec<CString>,
}

/// Loads the model folder at the path `folder` (UTF-8), f32 or int8, to run on `threads` threads, which include the
/// caller's. Returns NULL after an error. Free the model with `ofa_free`.
///
/// # Safety
/// `folder` is NULL or ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ofa_load(folder: *const c_char, threads: usize) -> Option<Box<OfaModel>> {
    answer(None, || {
        // SAFETY: the caller's promise.
        let folder = unsafe { path("the model folder", folder) }?;
        Ok(Some(Box::new(OfaModel::load(folder, threads)?)))
    })
}

/// Frees a model; NULL is allowed. No other thread may be using it.
#[unsafe(no_mangle)]
pub extern "C" fn ofa_free(model: Option<Box<OfaModel>>) {
    answer((), || {
        drop(model);
        Ok(())
    });
}

/// Height and width of the network's input in pixels; 0 if `model` is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn ofa_resolution(model: Option<&OfaModel>) -> usize {
    answer(0, || Ok(given(model)?.resolution))
}

/// Number of classes, which is the number of logits of an image; 0 if `model` is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn ofa_class_count(model: Option<&OfaModel>) -> usize {
    answer(0, || Ok(given(model)?.classes.len()))
}

/// Name of a class in UTF-8, valid until the model is freed; NULL if there is no such class.
#[unsafe(no_mangle)]
pub extern "C" fn ofa_class_name(model: Option<&OfaModel>, index: usize) -> *const c_char {
    answer(std::ptr::null(), || {
        let classes = &given(model)?.classes;
        let name = classes.get(index).map(|name| name.as_ptr());
        name.ok_or_else(|| format!("there is no class {index}: the model has {}, from 0 on", classes.len()))
    })
}

/// Computes the logits of the image in the file `image` (its path in UTF-8), JPEG or PNG, which is read exactly as
/// `ofa predict` reads it. `logits_len` is the number of classes. Returns 0, or -1 after an error, which leaves
/// `logits` alone.
///
/// # Safety
/// `image` is NULL or ends with a zero byte; `logits` is NULL or has room for `logits_len` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ofa_run_file(
    model: Option<&OfaModel>,
    image: *const c_char,
    logits: *mut f32,
    logits_len: usize,
) -> c_int {
    answer(-1, || {
        let model = given(model)?;
        // SAFETY: the caller's promises.
        let (image, logits) = unsafe { (path("the image", image)?, room("logits", logits, logits_len)?) };
        model.run_image(logits, |model| model.read_image(image))
    })
}

/// Computes the logits of the image in memory, the content of a JPEG or PNG file, which is read exactly as
/// `ofa predict` reads the file. `logits_len` is the number of classes. Returns 0, or -1 after an error, which leaves
/// `logits` alone.
///
/// # Safety
/// `content` is NULL or holds `content_len` bytes; `logits` is NULL or has room for `logits_len` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ofa_run_bytes(
    model: Option<&OfaModel>,
    content: *const u8,
    content_len: usize,
    logits: *mut f32,
    logits_len: usize,
) -> c_int {
    answer(-1, || {
        let model = given(model)?;
        // SAFETY: the caller's promises.
        let (content, logits) =
            unsafe { (values("content", content, content_len)?, room("logits", logits, logits_len)?) };
        model.run_image(logits, |model| model.read_bytes(content))
    })
}

/// Writes the image in memory, the content of a JPEG or PNG file, to `input` as `ofa_run` takes it: inputs of several
/// images, one after the other, are a batch. `input_len` is `3 * resolution * resolution`. Returns 0, or -1 after an
/// error, which leaves `input` alone.
///
/// # Safety
/// `content` is NULL or holds `content_len` bytes; `input` is NULL or has room for `input_len` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ofa_read_bytes(
    model: Option<&OfaModel>,
    content: *const u8,
    content_len: usize,
    input: *mut f32,
    input_len: usize,
) -> c_int {
    answer(-1, || {
        let model = given(model)?;
        // SAFETY: the caller's promises.
        let (content, input) = unsafe { (values("content", content, content_len)?, room("input", input, input_len)?) };
        model.read(input, |model| model.read_bytes(content))
    })
}

/// Writes an image of RGB pixels to `input` as `ofa_run` takes it: see `ofa_run_pixels` and `ofa_read_bytes`. Returns
/// 0, or -1 after an error, which leaves `input` alone.
///
/// # Safety
/// `pixels` is NULL or holds `3 * width * height` bytes; `input` is NULL or has room for `input_len` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ofa_read_pixels(
    model: Option<&OfaModel>,
    pixels: *const u8,
    width: usize,
    height: usize,
    input: *mut f32,
    input_len: usize,
) -> c_int {
    answer(-1, || {
        let model = given(model)?;
        // SAFETY: the caller's promises.
        let (pixels, input) = unsafe { (rgb(pixels, width, height)?, room("input", input, input_len)?) };
        model.read(input, |model| model.read_pixels(pixels, width, height))
    })
}

/// Computes the logits of an image of RGB pixels: `height` rows of `width` pixels of 3 bytes, without gaps. The image
/// is scaled, cropped and normalised as `ofa predict` does. `logits_len` is the number of classes. Returns 0, or -1
/// after an error, which leaves `logits` alone.
///
/// # Safety
/// `pixels` is NULL or holds `3 * width * height` bytes; `logits` is NULL or has room for `logits_len` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ofa_run_pixels(
    model: Option<&OfaModel>,
    pixels: *const u8,
    width: usize,
    height: usize,
    logits: *mut f32,
    logits_len: usize,
) -> c_int {
    answer(-1, || {
        let model = given(model)?;
        // SAFETY: the caller's promises.
        let (pixels, logits) = unsafe { (rgb(pixels, width, height)?, room("logits", logits, logits_len)?) };
        model.run_image(logits, |model| model.read_pixels(pixels, width, height))
    })
}

/// Computes the logits `[batch, classes]` of images of normalised floats `[batch, resolution, resolution, 3]`:
/// `(pixel / 255 - mean) / std` with the values of the model's `config.json`. `images_len` and `logits_len` are numbers
/// of floats. Returns 0, or -1 after an error, which leaves `logits` alone.
///
/// # Safety
/// `images` is NULL or holds `images_len` floats; `logits` is NULL or has room for `logits_len` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ofa_run(
    model: Option<&OfaModel>,
    images: *const f32,
    images_len: usize,
    logits: *mut f32,
    logits_len: usize,
) -> c_int {
    answer(-1, || {
        let model = given(model)?;
        // SAFETY: the caller's promises.
        let (images, logits) = unsafe { (values("images", images, images_len)?, room("logits", logits, logits_len)?) };
        if let Some(place) = images.iter().position(|value| !value.is_finite()) {
            return Err(format!("value {place} of the images is {}, not a finite number", images[place]));
        }
        let image = 3 * model.resolution * model.resolution;
        model.run(logits, |_| Ok((images, images.len().div_ceil(image))))
    })
}

/// Version of the library, such as `0.1.0`.
#[unsafe(no_mangle)]
pub extern "C" fn ofa_version() -> *const c_char {
    VERSION.as_ptr()
}

/// What went wrong in the last call on this thread that failed; empty if none did. The text is valid until the next
/// call on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn ofa_error() -> *const c_char {
    // The text stays where it is until another one replaces it.
    ERROR.with_borrow(|text| text.as_ptr())
}

impl OfaModel {
    fn load(folder: &str, threads: usize) -> Result<Self, String> {
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(format!("{threads} threads were asked for; 1 to {MAX_THREADS} are possible"));
        }
        let model = Model::load(folder).map_err(|error| error.to_string())?;
        let config = model.config();
        let classes = config.labels.iter().map(|label| text(label)).collect();
        Ok(OfaModel { threads, resolution: config.network.resolution, classes, model: Mutex::new(model) })
    }

    /// Writes the image that `image` reads to `input`.
    fn read(
        &self,
        input: &mut [MaybeUninit<f32>],
        image: impl FnOnce(&Model) -> ofa_evaluate::Result<Vec<f32>>,
    ) -> Result<c_int, String> {
        let model = self.model.lock().map_err(|_| BROKEN)?;
        let values = image(&model).map_err(|error| error.to_string())?;
        if input.len() != values.len() {
            return Err(format!("there is room for {} values; {} were expected", input.len(), values.len()));
        }
        input.iter_mut().zip(values).for_each(|(place, value)| _ = place.write(value));
        Ok(0)
    }

    /// Runs the model on the one image that `image` reads, and writes the logits.
    fn run_image(
        &self,
        logits: &mut [MaybeUninit<f32>],
        image: impl FnOnce(&Model) -> ofa_evaluate::Result<Vec<f32>>,
    ) -> Result<c_int, String> {
        self.run(logits, |model| Ok((image(model).map_err(|error| error.to_string())?, 1)))
    }

    /// Runs the model on the images that `input` returns with their number, and writes the logits.
    fn run<T: AsRef<[f32]>>(
        &self,
        logits: &mut [MaybeUninit<f32>],
        input: impl FnOnce(&Model) -> Result<(T, usize), String>,
    ) -> Result<c_int, String> {
        // A panic may have left the network's buffers in the middle of a run.
        let mut model = self.model.lock().map_err(|_| BROKEN)?;
        let (images, batch) = input(&model)?;
        let (there, classes) = (logits.len(), self.classes.len());
        if there != batch * classes {
            return Err(format!("there is room for {there} logits; {batch} x {classes} were expected"));
        }
        let found = with_threads(self.threads, || model.network().run(images.as_ref(), batch));
        let found = found.map_err(|error| error.to_string())?;
        logits.iter_mut().zip(found).for_each(|(logit, found)| _ = logit.write(*found));
        Ok(0)
    }
}

/// Says that a panic ended an earlier call.
const BROKEN: &str = "an earlier call failed inside: load the model again";

/// The model, unless the caller's pointer is NULL.
fn given(model: Option<&OfaModel>) -> Result<&OfaModel, String> {
    model.ok_or_else(|| "the model is NULL".into())
}

/// The result of `call`; `failed` after an error or a panic, whose text `ofa_error` then returns.
fn answer<T>(failed: T, call: impl FnOnce() -> Result<T, String>) -> T {
    let message = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(result)) => return result,
        Ok(Err(message)) => message,
        Err(panic) => format!("internal error: {}", message_of(&*panic)),
    };
    ERROR.set(text(&message));
    failed
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

/// A text for C, which ends at its first zero byte.
fn text(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// The path of a caller; `name` is for the error.
///
/// # Safety
/// `path` is NULL or ends with a zero byte, and nobody changes it while the text is used.
unsafe fn path<'a>(name: &str, path: *const c_char) -> Result<&'a str, String> {
    if path.is_null() {
        return Err(format!("the path of {name} is NULL"));
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(path) }.to_str().map_err(|_| format!("the path of {name} is not UTF-8"))
}

/// The values that a pointer of the caller points to; `name` is for the error.
///
/// # Safety
/// `values` is NULL or points to `len` values, which nobody changes while the slice is used.
unsafe fn values<'a, T>(name: &str, values: *const T, len: usize) -> Result<&'a [T], String> {
    check(name, values, len)?;
    // SAFETY: the caller's promise; the pointer is aligned and not NULL, and the length is possible.
    Ok(unsafe { slice::from_raw_parts(values, len) })
}

/// The RGB pixels of a caller.
///
/// # Safety
/// `pixels` is NULL or points to `3 * width * height` bytes, which nobody changes while the slice is used.
unsafe fn rgb<'a>(pixels: *const u8, width: usize, height: usize) -> Result<&'a [u8], String> {
    let len = width.checked_mul(height).and_then(|len| len.checked_mul(3)).unwrap_or(usize::MAX);
    // SAFETY: the caller's promise; no memory has `usize::MAX` bytes, which is refused.
    unsafe { values("pixels", pixels, len) }
}

/// Room for the floats of a caller, which need not be written; `name` is for the error.
///
/// # Safety
/// `floats` is NULL or has room for `len` floats, which nobody else uses while the slice is used.
unsafe fn room<'a>(name: &str, floats: *mut f32, len: usize) -> Result<&'a mut [MaybeUninit<f32>], String> {
    check(name, floats, len)?;
    // SAFETY: the caller's promise; the pointer is aligned and not NULL, and the length is possible.
    Ok(unsafe { slice::from_raw_parts_mut(floats.cast(), len) })
}

/// Refuses a pointer or a length that no array has.
fn check<T>(name: &str, values: *const T, len: usize) -> Result<(), String> {
    if values.is_null() || !values.is_aligned() {
        return Err(format!("the pointer to the {name} is NULL or not aligned"));
    }
    if len > isize::MAX as usize / size_of::<T>() {
        return Err(format!("no memory holds so many {name}"));
    }
    Ok(())
}
