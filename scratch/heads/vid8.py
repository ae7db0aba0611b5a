"""vid8.py STATE: does the texture of hair stay where it is? Fine differences of a fixed box, their mean over 120 frames."""
import sys; sys.path.insert(0,'.')
import torch,numpy as np,cv2,models,transfer,sample
from pretrain import image_model as im, heads
torch.set_num_threads(1)
s=torch.load(sys.argv[1],weights_only=True)['ema']; print([round(float(v),4) for k,v in s.items() if 'noise' in k and v.numel()==1])
net=im.Networks(128,heads.Z); net.load_state_dict(s); net.eval()
G,meta=sample.load_motion('./assets/motion.pt'); m=models.load_image_model('faces128')
w=torch.from_numpy(np.concatenate(list(sample.sample(G,160,10))))
pca={k:meta['pca'][k].float() for k in ('mean','basis')}
x=transfer.move(w,transfer.random_actor(m,8),pca,w[0],'offset')
with torch.no_grad(): f=im.to_pictures(torch.cat([net.decoder(q) for q in x[20:140].split(20)]))
# stick: correlation over time of hair's high frequencies at fixed pixels
hp=np.stack([cv2.GaussianBlur(q,(0,0),.1).astype(float)-cv2.GaussianBlur(q,(0,0),2.) for q in f.astype(np.float32)])[:,8:34,40:90].mean(3)
hp-=0
print('std over space',hp.std((1,2)).mean(),'std of time mean / std',hp.mean(0).std()/hp.std((1,2)).mean())
big=[cv2.resize(f[k][:70],None,fx=2.5,fy=2.5,interpolation=cv2.INTER_CUBIC) for k in range(36,84,6)]
cv2.imwrite('v8.png',np.vstack([np.hstack(big[:4]),np.hstack(big[4:])])[...,::-1])
