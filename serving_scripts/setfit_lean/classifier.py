"""The classifier that `mme.lean` exported: tokenizer, encoder in ONNX, and a head of two arrays."""

from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

SENTENCES_AT_ONCE = 32  # what the encoder computes takes memory for each of them, up to 10 MB where they are long


class Classifier:
    """Reads sentences as the SetFit model did that it was exported from."""

    def __init__(self, folder):
        """Load the folder's files. Workers scale the calls, so a call computes in one thread."""
        folder = Path(folder)
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        encoder = str(folder / "encoder.onnx")
        self.encoder = onnxruntime.InferenceSession(encoder, options, providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        with np.load(folder / "head.npz") as head:
            self.weights, self.bias, self.labels = head["weights"], head["bias"], head["labels"]
            self.tokenizer.enable_truncation(int(head["max_tokens"]))

    def probabilities(self, sentences):
        """An array of shape (sentences, labels): how likely each label is."""
        tokens = self.tokenizer.encode_batch(sentences)
        by_length = np.argsort([len(each) for each in tokens])
        embeddings = [
            self.embeddings([tokens[place] for place in by_length[start : start + SENTENCES_AT_ONCE]])
            for start in range(0, len(tokens), SENTENCES_AT_ONCE)
        ]
        scores = np.concatenate(embeddings)[np.argsort(by_length)] @ self.weights.T + self.bias
        if len(self.labels) == 2:
            second = 1 / (1 + np.exp(-scores[:, 0]))
            return np.stack([1 - second, second], axis=1)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def embeddings(self, tokens):
        """An array of shape (sentences, features), of sentences in tokens, the longest last."""
        for each in tokens:
            each.pad(len(tokens[-1]))
        ids = np.array([each.ids for each in tokens], np.int64)
        mask = np.array([each.attention_mask for each in tokens], np.int64)
        return self.encoder.run(None, {"input_ids": ids, "attention_mask": mask})[0]
