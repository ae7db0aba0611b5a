"""What would hair texture cost that is not the render's own? Add high frequencies of the mirrored picture's hair."""
import sys; sys.path.insert(0,'.')
import numpy as np, torch, cv2
import models
from studies import truth
m=models.load_image_model('faces128'); torch.set_num_threads(1)
d=np.load('truth-held_out.npz'); p=d['p']; hair=d['hair'].astype(bool)
y=truth.shown(m,truth.encoded(m,p)).astype(np.float32)
r=p.astype(np.float32)
H=np.stack([q-cv2.GaussianBlur(q,(0,0),2.0) for q in r])
M=hair&hair[:,:,::-1]; Hm=H[:,:,::-1]*M[...,None]
lap=lambda a: np.stack([cv2.Laplacian(cv2.cvtColor(np.clip(q,0,255).astype(np.uint8),cv2.COLOR_RGB2GRAY),cv2.CV_32F)**2 for q in a])
E=lap(r)
mse=((y-r)**2).mean((1,2,3)); print('hair share',hair.mean(),'mse hair share',(((y-r)**2).mean(3)*hair).sum()/((y-r)**2).mean(3).sum())
for a in (0,.5,.7,.8,.9,1):
    z=y+a*Hm
    mse2=((np.clip(z,0,255)-r)**2).mean((1,2,3)); L=lap(z)
    print(a,'PSNR',round(float((10*np.log10(255**2/mse2)).mean()),2),'hair in mirrored mask',round(float(L[M].sum()/E[M].sum()),2),'hair all',round(float(L[hair].sum()/E[hair].sum()),2), 'mask share', round(M.sum()/hair.sum(),2))
