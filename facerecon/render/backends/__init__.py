"""Rasterizer backends: each turns screen-space vertices into face ids, and nothing else.

A backend is a module with ``face_ids(screen, faces, size, cull) -> (B, H, W) int64``. ``screen`` is (B, V, 4)
float64: x and y in pixels (y down), nearness in [0, 1] (1 at the near plane, 0 at the far one), w. A pixel
belongs to the face of greatest float32 nearness at its center, edges included; of two equally near faces the
smaller id wins. Faces with a vertex at w <= 0 and faces of zero area are not drawn.
"""
