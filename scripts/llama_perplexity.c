// The loss that llama-perplexity computes, by llama.cpp's own library: the golden figures of tests/cli/evaluate.rs.
//
//     cc llama_perplexity.c -I INCLUDE -L LIB -l:libllama.v0.5.0.so -l:libggml.v0.5.0.so -l:libggml-base.so -lm -Wl,-rpath,LIB
//     ./a.out MODEL.gguf TEXT WINDOW LIB
//
// INCLUDE: llama.h and ggml.h of llama.cpp (those of 0.6.0-dev fit); LIB: its libraries, such as bins/linux-x64 of npm's
// @node-llama-cpp/linux-x64 3.22.1. The models: `fourbit quantize assets/embedded --scheme f32 --output MODEL.gguf`, and the same
// with tokenizer.ggml.bos_token_id 1 and add_bos_token true. The cache holds f32, which llama-perplexity takes with -ctk and -ctv.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "ggml-backend.h"
#include "llama.h"

static double surprise(const float *logits, int vocab, int token) {
    double most = logits[0], sum = 0;
    for (int i = 1; i < vocab; i++) most = logits[i] > most ? logits[i] : most;
    for (int i = 0; i < vocab; i++) sum += exp(logits[i] - most);
    return most + log(sum) - logits[token];
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    const int window = atoi(argv[3]);
    ggml_backend_load_all_from_path(argv[4]);
    struct llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = window;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32;
    struct llama_context *context = llama_init_from_model(model, params);
    FILE *file = fopen(argv[2], "rb");
    if (!context || !file) return 1;

    static char text[1 << 20];
    size_t size = fread(text, 1, sizeof text, file);
    if (size && text[size - 1] == '\n') size--;
    static llama_token tokens[1 << 20];
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    const int count = llama_tokenize(vocab, text, size, tokens, 1 << 20, true, false);
    const int entries = llama_vocab_n_tokens(vocab);

    struct llama_batch batch = llama_batch_init(window, 0, 1);
    double sum = 0;
    long predicted = 0;
    for (int start = 0; start + window <= count; start += window) {
        llama_memory_clear(llama_get_memory(context), true);
        batch.n_tokens = window;
        for (int i = 0; i < window; i++) {
            const int bos = i == 0 && llama_vocab_get_add_bos(vocab);
            batch.token[i] = bos ? llama_vocab_bos(vocab) : tokens[start + i];
            batch.pos[i] = i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = i >= window / 2;
        }
        if (llama_decode(context, batch)) return 1;
        for (int i = window / 2; i < window - 1; i++, predicted++)
            sum += surprise(llama_get_logits_ith(context, i), entries, tokens[start + i + 1]);
    }
    printf("loss %.6f perplexity %.4f tokens %ld\n", sum / predicted, exp(sum / predicted), predicted);
    return 0;
}
