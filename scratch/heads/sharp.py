"""sharp.py STATE: PSNR and sharpness of 300 people through the encoder; renders and masks by studies.truth.rendered()."""
import sys; sys.path.insert(0,'.')
import numpy as np, torch, cv2
from pretrain import image_model as im, heads
torch.set_num_threads(1)
net=im.Networks(128,heads.Z); net.load_state_dict(torch.load(sys.argv[1],weights_only=True)['ema']); net.eval()
d=np.load('truth-held_out.npz'); print(d.files, d['p'].shape)
lap=lambda p: np.array([cv2.Laplacian(cv2.cvtColor(q,cv2.COLOR_RGB2GRAY),cv2.CV_32F)**2 for q in p])
L=lap(d['p']); out=[]
for q in np.array_split(d['p'],12): out.append(im.to_pictures(net.image_model().render(net.image_model().encode(im.to_network(torch.from_numpy(q),'cpu')))))
y=np.concatenate(out); M=lap(y); print('psnr',round(im.psnr(d['p'],y),2),{k:round(float(M[d[k]].sum()/L[d[k]].sum()),3) for k in ('eyes','mouth','hair')})
