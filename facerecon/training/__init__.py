"""Steps of the trainable networks, and what feeds them (Sec. 4.1; N_enc of Sec. 4.2)."""
