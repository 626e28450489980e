"""placeholder"""
class DPVAE: pass
