/* Runtime of the models that `ofa extract` and `ofa quantise` write. Made by cbindgen: see src/lib.rs.
 *
 * A pointer to a model is NULL or comes from ofa_load and has not been freed. Functions may be called from several
 * threads; a text of ofa_error belongs to the thread that calls it. */

#ifndef OFA_H
#define OFA_H

#include <stddef.h>
#include <stdint.h>

/*
 A loaded model. Several threads may use one at the same time: its runs take place one after the other.
 */
typedef struct OfaModel OfaModel;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 Loads the model folder at the path `folder` (UTF-8), f32 or int8, to run on `threads` threads, which include the
 caller's. Returns NULL after an error. Free the model with `ofa_free`.

 # Safety
 `folder` is NULL or ends with a zero byte.
 */
OfaModel *ofa_load(const char *folder, size_t threads);

/*
 Frees a model; NULL is allowed. No other thread may be using it.
 */
void ofa_free(OfaModel *model);

/*
 Height and width of the network's input in pixels; 0 if `model` is NULL.
 */
size_t ofa_resolution(const OfaModel *model);

/*
 Number of classes, which is the number of logits of an image; 0 if `model` is NULL.
 */
size_t ofa_class_count(const OfaModel *model);

/*
 Name of a class in UTF-8, valid until the model is freed; NULL if there is no such class.
 */
const char *ofa_class_name(const OfaModel *model, size_t index);

/*
 Computes the logits of the image in the file `image` (its path in UTF-8), JPEG or PNG, which is read exactly as
 `ofa predict` reads it. `logits_len` is the number of classes. Returns 0, or -1 after an error, which leaves
 `logits` alone.

 # Safety
 `image` is NULL or ends with a zero byte; `logits` is NULL or has room for `logits_len` floats.
 */
int ofa_run_file(const OfaModel *model, const char *image, float *logits, size_t logits_len);

/*
 Computes the logits of the image in memory, the content of a JPEG or PNG file, which is read exactly as
 `ofa predict` reads the file. `logits_len` is the number of classes. Returns 0, or -1 after an error, which leaves
 `logits` alone.

 # Safety
 `content` is NULL or holds `content_len` bytes; `logits` is NULL or has room for `logits_len` floats.
 */
int ofa_run_bytes(const OfaModel *model, const uint8_t *content, size_t content_len, float *logits, size_t logits_len);

/*
 Writes the image in memory, the content of a JPEG or PNG file, to `input` as `ofa_run` takes it: inputs of several
 images, one after the other, are a batch. `input_len` is `3 * resolution * resolution`. Returns 0, or -1 after an
 error, which leaves `input` alone.

 # Safety
 `content` is NULL or holds `content_len` bytes; `input` is NULL or has room for `input_len` floats.
 */
int ofa_read_bytes(const OfaModel *model, const uint8_t *content, size_t content_len, float *input, size_t input_len);

/*
 Writes an image of RGB pixels to `input` as `ofa_run` takes it: see `ofa_run_pixels` and `ofa_read_bytes`. Returns
 0, or -1 after an error, which leaves `input` alone.

 # Safety
 `pixels` is NULL or holds `3 * width * height` bytes; `input` is NULL or has room for `input_len` floats.
 */
int ofa_read_pixels(const OfaModel *model,
                    const uint8_t *pixels,
                    size_t width,
                    size_t height,
                    float *input,
                    size_t input_len);

/*
 Computes the logits of an image of RGB pixels: `height` rows of `width` pixels of 3 bytes, without gaps. The image
 is scaled, cropped and normalised as `ofa predict` does. `logits_len` is the number of classes. Returns 0, or -1
 after an error, which leaves `logits` alone.

 # Safety
 `pixels` is NULL or holds `3 * width * height` bytes; `logits` is NULL or has room for `logits_len` floats.
 */
int ofa_run_pixels(const OfaModel *model,
                   const uint8_t *pixels,
                   size_t width,
                   size_t height,
                   float *logits,
                   size_t logits_len);

/*
 Computes the logits `[batch, classes]` of images of normalised floats `[batch, resolution, resolution, 3]`:
 `(pixel / 255 - mean) / std` with the values of the model's `config.json`. `images_len` and `logits_len` are numbers
 of floats. Returns 0, or -1 after an error, which leaves `logits` alone.

 # Safety
 `images` is NULL or holds `images_len` floats; `logits` is NULL or has room for `logits_len` floats.
 */
int ofa_run(const OfaModel *model, const float *images, size_t images_len, float *logits, size_t logits_len);

/*
 Version of the library, such as `0.1.0`.
 */
const char *ofa_version(void);

/*
 What went wrong in the last call on this thread that failed; empty if none did. The text is valid until the next
 call on this thread.
 */
const char *ofa_error(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* OFA_H */
