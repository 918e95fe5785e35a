//! CPEG: negatives, contrastive prompts, and the loop that asks again after a wrong pick
