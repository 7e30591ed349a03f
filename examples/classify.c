/* Classifies an image (JPEG or PNG) with an extracted model, f32 or int8: classify FOLDER IMAGE
 *
 * cargo build --release -p ofa-c
 * cc -I evaluate/c examples/classify.c -o classify -L target/release -lofa_c -lm -Wl,-rpath,target/release */
#include "ofa.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    OfaModel *model = argc == 3 ? ofa_load(argv[1], 1) : NULL;
    if (!model) return fprintf(stderr, "%s\n", argc == 3 ? ofa_error() : "usage: classify FOLDER IMAGE"), 1;
    size_t classes = ofa_class_count(model), best = 0;
    float *logits = calloc(classes, sizeof *logits);
    int failed = ofa_run_file(model, argv[2], logits, classes);
    for (size_t i = 1; !failed && i < classes; i++) best = logits[i] > logits[best] ? i : best;
    double sum = 0;
    for (size_t i = 0; !failed && i < classes; i++) sum += exp(logits[i] - logits[best]);
    if (failed) fprintf(stderr, "%s\n", ofa_error());
    else printf("%s %.9f\n", ofa_class_name(model, best), 1 / sum);
    free(logits);
    ofa_free(model);
    return failed ? 1 : 0;
}
