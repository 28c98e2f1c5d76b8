"""Block plan to kernel source: text that stands alone on torch and triton."""
