import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { brotliCompressSync, constants } from 'node:zlib';
import react from '@vitejs/plugin-react';
import { defineConfig, type Plugin } from 'vite';

/** Where `vite` (development) finds the appliance's API; the certificate there is of the appliance's own CA. */
const appliance = process.env.UNDERSTUDY_APPLIANCE ?? 'https://127.0.0.1:8443';

/** The style sheets and scripts compressed once here, instead of by the appliance for every request. */
const compress = (): Plugin => ({
  name: 'compress',
  apply: 'build',
  writeBundle({ dir }) {
    const assets = join(dir!, 'assets');
    for (const name of readdirSync(assets).filter((one) => /\.(css|js|svg)$/.test(one))) {
      const small = brotliCompressSync(readFileSync(join(assets, name)), {
        params: { [constants.BROTLI_PARAM_QUALITY]: 9 },
      });
      writeFileSync(join(assets, `${name}.br`), small);
    }
  },
});

export default defineConfig({
  // Relative addresses: the page works wherever it is mounted.
  base: './',
  plugins: [react(), compress()],
  build: {
    outDir: 'dist',
    emptyOutDir: true,
    target: 'es2023',
    assetsInlineLimit: 2048,
    chunkSizeWarningLimit: 1200,
    reportCompressedSize: false,
  },
  server: {
    host: '127.0.0.1',
    proxy: { '/api': { target: appliance, secure: false, changeOrigin: true } },
  },
});
