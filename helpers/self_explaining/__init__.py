"""CNN-LSX: a learner whose explanations have to teach a critic (spec cnn_lsx)."""
