"""pack.py OUT FROM TO: shards number FROM..TO of train/ as WebP in one npz"""
import sys, glob, numpy as np, cv2
files=sorted(glob.glob('heads/train/heads-????????.npz'))[int(sys.argv[2]):int(sys.argv[3])]
E,L,Z,B,I=[],[],[],[],[]
for f in files:
    d=np.load(f); at=np.concatenate([[0],np.cumsum(d["lengths"])])
    for a,b in zip(at,at[1:]):
        e=cv2.imencode(".webp",cv2.imdecode(d["jpeg"][a:b],1),[cv2.IMWRITE_WEBP_QUALITY,90])[1].ravel(); E.append(e); L.append(len(e))
    Z.append(d["z"]);B.append(d["boxes"]);I.append(d["identity"])
np.savez(sys.argv[1], jpeg=np.concatenate(E), lengths=L, z=np.concatenate(Z), boxes=np.concatenate(B), identity=np.concatenate(I))
print(len(L), sum(L)/1e6)
