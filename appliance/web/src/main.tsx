import '@patternfly/react-core/dist/styles/base.css';
import './app.css';
import { createRoot } from 'react-dom/client';
import { HashRouter } from 'react-router';
import { App } from './app.tsx';
import { SessionProvider } from './session/session.tsx';

// The dark theme follows the system.
const dark = matchMedia('(prefers-color-scheme: dark)');
const follow = () => document.documentElement.classList.toggle('pf-v6-theme-dark', dark.matches);
dark.addEventListener('change', follow);
follow();

createRoot(document.getElementById('root')!).render(
  <HashRouter>
    <SessionProvider>
      <App />
    </SessionProvider>
  </HashRouter>,
);
