/** Entry point of the file browser's process. */
import { runBrowseWorker } from './worker.ts';

await runBrowseWorker();
