"""Codes of two videos as rounded PCA coordinates: python pack.py OUT.npz SHARE TRAIN.npy HELD.npy [FRAMES]; SHARE of variance that rounding may lose."""
import sys, numpy as np, os
out, share, files = sys.argv[1], float(sys.argv[2]), sys.argv[3:5]
sets = {}
for name, f in zip(('train','held'), files):
    n=int(open(f[:-4]+'.done').read()) if os.path.exists(f[:-4]+'.done') else None
    if len(sys.argv)>5: n=int(sys.argv[5])
    x=np.load(f,mmap_mode='r'); shape=x.shape[1:]; x=np.array(x[:n],np.float32); sets[name]=x.reshape(len(x),-1)
x=sets['train']; mean=x.mean(0); c=np.concatenate([s-mean for s in sets.values()])
val,vec=np.linalg.eigh((c.T@c).astype(np.float64)/len(c)); val,vec=val[::-1].clip(0),vec[:,::-1]
total=((x-mean)**2).sum()/len(x); step=np.float32(np.sqrt(12*share*total/len(val)))
K=int((np.sqrt(val)>0.2*step).sum())
arrays={'shape':np.array(shape),'mean':mean,'basis':vec[:,:K].T.astype(np.float32),'step':step}
for name,x in sets.items():
    q=np.round((x-mean)@arrays['basis'].T/step)
    over=np.flatnonzero(np.abs(q).max(0)>127); big=int(over.max()+1) if len(over) else 0
    arrays[name+'_big']=q[:,:big].astype(np.int16).T.copy(); arrays[name]=q[:,big:].astype(np.int8).T.copy()
    y=(np.concatenate([arrays[name+'_big'].T,arrays[name].T.astype(np.int16)],1).astype(np.float32)*step)@arrays['basis']+mean
    e=y-x
    print(name,len(x),'K',K,'big',big,'lost share %.2e'%((e**2).sum()/((x-x.mean(0))**2).sum()),'of velocity %.2e'%((np.diff(e,axis=0)**2).sum()/(np.diff(x,axis=0)**2).sum()),'of 2nd %.2e'%((np.diff(e,2,axis=0)**2).sum()/(np.diff(x,2,axis=0)**2).sum()), 'step',step, 'largest',np.abs(e).max())
np.savez_compressed(out,**arrays); print(os.path.getsize(out)/2**20,'MiB')
