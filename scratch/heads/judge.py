"""Held-out renders against z and encoder: PSNR, sharpness by part, dlib identity, correlations; 16 random actors."""
import sys; sys.path[:0]=['../..','.']
import json, glob, numpy as np, cv2, torch
torch.set_num_threads(1)
import models, embed, evaluate
src=open('./fit.py').read(); names=json.load(open('./z.json')); NAMES,PERSON,MOTION=names["NAMES"],names["PERSON"],names["MOTION"]
exec(src[src.index('NORMAL ='):src.index('Z = len(NAMES)')])
CH={4:256,8:256,16:192,32:128,64:80,128:48}
raw=torch.load('./r6/heads.pt',weights_only=True)
G=models.Generator(128,128,43,3,CH,lr_mlp=1.0).eval(); G.load_state_dict({k[8:]:v.float() for k,v in raw["state_dict"].items() if k.startswith("decoder.")})
new=models.load_image_model('./faces128.pt'); old=models.load_image_model('faces128')
P,Zs,B,I=[],[],[],[]
for f in sorted(glob.glob('heads/held/*/*.npz')):
    d=dict(np.load(f)); at=np.concatenate([[0],np.cumsum(d["lengths"])])
    P+=[cv2.imdecode(d["jpeg"][a:b],1)[...,::-1] for a,b in zip(at,at[1:])]; Zs.append(d["z"]); B.append(d["boxes"]); I.append(d["identity"])
P=np.array(P); Zs=np.concatenate(Zs); B=np.concatenate(B); I=np.concatenate(I)
x=torch.from_numpy(P.transpose(0,3,1,2).copy()).float()/127.5-1
u=gaussian(torch.from_numpy(quantiles(Zs)),False)
pics=lambda y:((y.clamp(-1,1)+1)*127.5).round().byte().permute(0,2,3,1).numpy()
with torch.no_grad():
    a=np.concatenate([pics(G(G.style[1:](q)[:,None].expand(-1,12,-1))) for q in u.split(32)])
    b=np.concatenate([pics(new.render(new.encode(q))) for q in x.split(32)])
psnr=lambda p,q:float(np.mean(10*np.log10(255**2/((p.astype(float)-q)**2).mean((1,2,3)))))
small=lambda p:np.array([cv2.resize(q,(64,64),interpolation=cv2.INTER_AREA) for q in p])
lap=lambda p:np.array([cv2.Laplacian(cv2.cvtColor(q,cv2.COLOR_RGB2GRAY),cv2.CV_32F)**2 for q in p])
L=lap(P); yy,xx=(np.mgrid[:128,:128]+.5)/128
def mask(k):
    m=np.zeros((len(P),128,128),bool)
    for n in range(len(P)):
        for j in k:
            x0,y0,x1,y1=B[n,j]; m[n]|=(xx>x0-.02)&(xx<x1+.02)&(yy>y0-.02)&(yy<y1+.02)
    return m
hair=np.repeat((yy<.28)[None],len(P),0)
parts={"eyes":mask((0,1)),"mouth":mask((2,)),"top quarter (hair)":hair,"all":np.ones_like(L,bool)}
meas=[embed.landmarks(cv2.resize(p,(256,256),interpolation=cv2.INTER_CUBIC)) for p in P]
base={"n":len(P),"found":sum(m is not None for m in meas)}
print(base)
for name,y in (("z",a),("encoder",b)):
    out={"psnr128":psnr(P,y),"psnr64":psnr(small(P),small(y))}; M=lap(y)
    out["sharp"]={k:float(M[m].sum()/L[m].sum()) for k,m in parts.items()}
    pts=[embed.landmarks(cv2.resize(p,(256,256),interpolation=cv2.INTER_CUBIC)) for p in y]
    ok=[k for k in range(len(P)) if meas[k] is not None and pts[k] is not None]
    fm=[evaluate.face_measures(meas[k]/256) for k in ok]; fp=[evaluate.face_measures(pts[k]/256) for k in ok]
    out["found"]=sum(m is not None for m in pts)
    out["r"]={n:round(float(np.corrcoef([q[n] for q in fm],[q[n] for q in fp])[0,1]),3) for n in fm[0]}
    D=[np.linalg.norm(evaluate.descriptor(cv2.resize(P[k],(256,256),interpolation=cv2.INTER_CUBIC),meas[k])-evaluate.descriptor(cv2.resize(y[k],(256,256),interpolation=cv2.INTER_CUBIC),pts[k])) for k in ok[::2]]
    out["identity"]=float(np.mean(D)); print(name,json.dumps(out)); sys.stdout.flush()
z=torch.from_numpy(np.concatenate([np.random.RandomState(s).standard_normal((1,43)) for s in range(16)])).float()
zo=torch.from_numpy(np.concatenate([np.random.RandomState(s).standard_normal((1,old.Z)) for s in range(16)])).float()
rows=[pics(old.render(old.map(zo,.7))),pics(new.render(new.map(z,.7))),P[::8][:16]]
cv2.imwrite('./compare.png',np.concatenate([np.concatenate(list(r),1) for r in rows])[...,::-1])
